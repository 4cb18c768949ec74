"""The loop: its loss written out by hand, splits and padding that change nothing, the fixed point of the KL, and runs.

Three parts: one `update` on a minibatch made by hand; `train` on responses that are enumerated, where the expected
gradient is known; `train` on a small transformer that samples.
"""

import copy
import math
from dataclasses import fields, replace

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from minirlhf import ppo
from minirlhf.builtin.advantages import gae, mc, reward_to_go
from minirlhf.builtin.kl import exact, k1, k2, k3
from minirlhf.builtin.losses import ppo_clip, ratio
from minirlhf.components import checks
from minirlhf.config.schema import Config, KLConfig, LossConfig, PPOConfig, RunConfig, SamplerConfig, TruncationConfig
from minirlhf.errors import DivergedError, PluginError
from minirlhf.models.generate import PromptBatch
from minirlhf.models.policy import Policy, Reference
from minirlhf.models.rollout import PolicyOutput, Rollout
from minirlhf.models.sampler import Sampler
from minirlhf.rewards.shape import Scores, ShapedScores
from minirlhf.rl import guards, terms
from minirlhf.rl.controllers import KLController, Penalty
from minirlhf.rl.experience import Experience
from minirlhf.rl.laps import Laps
from minirlhf.tensors import Moments
from tests.helpers import (
    BOS,
    CONFIG,
    EOS,
    PAD,
    Letters,
    Recorder,
    built,
    flat,
    padded,
    random_rollout,
    seeded,
    small_policy,
    small_trunk,
)

NAN = float("nan")
NOTHING = Moments(0.0, 0.0, 0)
KL = {"k1": k1, "k2": k2, "k3": k3, "exact": exact}


def parts(kl=k1, advantage=gae, loss=ppo_clip, reward=None, prompts=None, whitening="batch", **options) -> ppo.Parts:
    return ppo.Parts(
        prompts=prompts or (lambda step: None),
        rewards=reward,
        kl=built("kl", kl),
        advantage=built("advantage", advantage),
        loss=built("loss", loss, **options),
        whitening=whitening,
        tokenizer=Letters(),
    )


def state_of(policy, reference, optimizer, beta=0.1, **controller) -> ppo.PPOState:
    return ppo.PPOState(
        policy=policy,
        reference=reference,
        optimizer=optimizer,
        schedule=LambdaLR(optimizer, lambda step: 1.0),
        controller=KLController(beta, **controller),
        penalty=Penalty(1.0),
        score_moments=NOTHING,
        value_moments=NOTHING,
    )


# ---- one update on a minibatch made by hand ----------------------------------------------------------------

REFERENCE = 40  # seed of the reference's weights: far from the policy's
ROWS = 6


def rollout_with_gaps() -> Rollout:
    """Ragged rows; one has a hole in its mask (another speaker's tokens), one takes no part at all."""
    rollout = random_rollout(ROWS, seed=3)
    mask = rollout.mask.clone()
    assert sorted(mask.sum(dim=1).tolist())[:2] != [6, 6]
    mask[-1, 1:3] = False
    mask[1] = False
    return replace(rollout, mask=mask)


def experience_on(rollout: Rollout, policy: Policy) -> Experience:
    """Old log-probs and values off the policy's, so that ratios, both clips and the KL are all at work.

    Random numbers belong to (row, t), not to a padded width; padding holds NaN.
    """
    reference = Reference(small_policy(REFERENCE))
    with torch.no_grad():
        now, ref = policy.forward_pass(rollout), reference.forward_pass(rollout)
    noise = torch.randn(5, ROWS, 6, generator=seeded(9))
    noise = torch.nn.functional.pad(noise, (0, rollout.mask.shape[1] - 6), value=NAN)
    noise = noise.masked_fill(~rollout.response_mask, NAN)
    return Experience(
        rollout=rollout,
        old_logprobs=now.logprobs + 0.3 * noise[0],
        ref_logprobs=ref.logprobs.masked_fill(~rollout.response_mask, NAN),
        old_values=now.values + 0.3 * noise[1],
        kl=noise[2],
        scores=torch.zeros(ROWS),
        rewards=noise[2],
        advantages=noise[3],
        returns=now.values + noise[4],
        ref_log_dist=ref.log_dist,
    )


def rows_of_a_rollout(rows: int) -> Experience:
    """An experience whose numbers do not matter."""
    rollout = random_rollout(rows)
    zero = torch.zeros(rollout.mask.shape)
    return Experience(rollout, zero, zero, zero, zero, torch.zeros(rows), zero, zero, zero, lambda part: zero[part])


def settings(aggregation="token_mean", micro=None, place="loss", entropy=0.02, clip=0.2, value=0.7) -> Config:
    return Config(
        ppo=PPOConfig(minibatch_size=ROWS, micro_batch_size=micro, grad_clip=1e9),
        kl=KLConfig(place=place),
        loss=LossConfig(aggregation=aggregation, value_coef=value, value_clip=clip, entropy_coef=entropy),
        sampler=SamplerConfig(max_new_tokens=9),
    )


def updated(config: Config, kl=exact, rollout=None, policy=None, beta=0.3):
    """(gradient, metrics, weights after) of one update by SGD."""
    policy = policy or small_policy()
    optimizer = Recorder(policy.parameters(), lr=0.1)
    batch = experience_on(rollout or rollout_with_gaps(), policy)
    state = state_of(policy, None, optimizer)
    metrics = ppo.update(state, batch, parts(kl=kl), config, beta)
    return optimizer.gradients[0], metrics, flat(policy)


def loss_by_hand(
    policy: Policy, e: Experience, kl: str, aggregation: str, beta: float, unit: float = 1.0
) -> torch.Tensor:
    """Sum over the tokens, one at a time: N11 + 0.7 value loss + beta KL - 0.02 entropy; V is counted in `unit`s."""
    out, frozen = policy.forward_pass(e.rollout), e.ref_log_dist(slice(None))
    dist = out.log_dist(slice(None))
    lengths = e.mask.sum(dim=1).tolist()
    total = torch.tensor(0.0)
    for i in range(len(e)):
        for t in range(e.mask.shape[1]):
            if not e.mask[i, t]:
                continue
            rho = (out.logprobs[i, t] - e.old_logprobs[i, t]).exp()
            a, v, old, target = e.advantages[i, t], out.values[i, t], e.old_values[i, t], e.returns[i, t]
            surrogate = -torch.min(a * rho, a * rho.clamp(0.8, 1.2))
            v, old, target = v / unit, old / unit, target / unit
            near = old + (v - old).clamp(-0.2, 0.2)
            value = 0.5 * torch.max((v - target) ** 2, (near - target) ** 2)
            possible = [x for x in range(13) if x not in (PAD, BOS)]
            p, q = dist[i, t, possible], frozen[i, t, possible]
            divergence = (p.exp() * (p - q)).sum() if kl == "exact" else 0.5 * (
                out.logprobs[i, t] - e.ref_logprobs[i, t]
            ) ** 2  # fmt: skip
            weight = {
                "token_mean": 1 / sum(lengths),
                "sequence_mean": 1 / lengths[i] / sum(n > 0 for n in lengths),
                "constant": 1 / 9 / sum(n > 0 for n in lengths),
            }[aggregation]
            entropy = -(p.exp() * p).sum()
            total = total + weight * (surrogate + 0.7 * value + beta * divergence - 0.02 * entropy)
    return total


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kl", ["exact", "k2"])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_micro_batches_of_any_size_give_the_gradient_of_the_loss_written_by_hand(aggregation, kl):
    policy = small_policy()
    loss_by_hand(policy, experience_on(rollout_with_gaps(), policy), kl, aggregation, 0.3).backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
    assert expected.norm() > 0.1
    _, whole_metrics, whole_weights = updated(settings(aggregation), KL[kl])
    for micro in (1, 2, 3, None):
        gradient, metrics, weights = updated(settings(aggregation, micro), KL[kl])
        assert (gradient - expected).abs().max() < 1e-10
        assert (weights - (flat(policy) - 0.1 * expected)).abs().max() < 1e-10
        assert (weights - whole_weights).abs().max() < 1e-10
        assert metrics == pytest.approx(whole_metrics, abs=1e-10)
    assert metrics["policy/clipfrac_avg"] > 0  # both clips were at work, or the test shows little
    assert metrics["val/clipfrac_avg"] > 0


@pytest.mark.usefixtures("double")
def test_values_are_learned_and_clipped_in_the_unit_of_v():
    """Unit 3: the clip is .2 of it, and errors are counted in it, so their squares are divided by 9."""
    policy = small_policy()
    policy.rescale_values(3.0)
    loss_by_hand(policy, experience_on(rollout_with_gaps(), policy), "k2", "constant", 0.3, unit=3.0).backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
    gradient, metrics, _ = updated(settings("constant"), k2, policy=copy.deepcopy(policy))
    assert (gradient - expected).abs().max() < 1e-10
    assert 0 < metrics["val/clipfrac_avg"] < 1


def test_a_healthy_update_reads_no_number_of_a_component(monkeypatch):
    """That would wait for the device. With a NaN in it, the loss of the policy is named all the same."""
    read, plain = [], checks._check_finite
    monkeypatch.setattr(checks, "_check_finite", lambda built, *rest: read.append(built.title) or plain(built, *rest))
    updated(settings())
    assert read == []

    def lost(logprobs):
        return logprobs * NAN, {}

    policy = small_policy()
    state = state_of(policy, None, Recorder(policy.parameters()))
    with pytest.raises(PluginError, match="policy loss 'lost'"):
        ppo.update(state, experience_on(rollout_with_gaps(), policy), parts(loss=lost), settings(), 0.3)
    assert read


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_the_gradients_of_minibatches_of_any_size_add_up_to_that_of_the_whole_rollout(aggregation):
    """Weighted by their rows, as each is a mean over rows; however long the responses of a minibatch happen to be."""

    def gradient(batch: Experience, micro: int | None) -> torch.Tensor:
        policy = small_policy()
        state = state_of(policy, None, Recorder(policy.parameters()))
        ppo.update(state, batch, parts(kl=exact), settings(aggregation, micro), 0.3)
        return state.optimizer.gradients[0]

    whole = experience_on(rollout_with_gaps(), small_policy())
    expected, rows = gradient(whole, None), whole.mask.any(dim=1)
    for size in (1, 2, 4):
        for micro in (1, None):
            total = torch.zeros_like(expected)
            for batch in whole.minibatches(size, seeded(2)):
                total += gradient(batch, micro) * batch.mask.any(dim=1).sum() / rows.sum()
            assert (total - expected).abs().max() < 1e-10


def test_micro_batches_in_float32_smoke():
    """Loose, because float32 sums in another order; the float64 test above is the exact one."""
    whole, *_ = updated(settings())
    for micro in (1, 2):
        assert torch.allclose(updated(settings(micro=micro))[0], whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kl", ["exact", "k2"])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_padding_on_either_side_changes_neither_gradient_nor_metrics(aggregation, kl):
    plain, plain_metrics, _ = updated(settings(aggregation), KL[kl])
    for left, right in [(0, 1), (1, 0), (2, 5), (16, 0), (0, 16), (16, 16)]:
        wide, metrics, _ = updated(settings(aggregation), KL[kl], rollout=padded(rollout_with_gaps(), left, right))
        assert (wide - plain).abs().max() < 1e-10
        assert metrics == pytest.approx(plain_metrics, abs=1e-10)


@pytest.mark.usefixtures("double")
def test_a_row_without_mask_weighs_nothing_in_gradient_and_metrics():
    """The same minibatch with that row taken out."""
    policy = small_policy()
    batch = experience_on(rollout_with_gaps(), policy)
    kept = batch.rows(torch.tensor([0, 2, 3, 4, 5]))
    for aggregation in ("token_mean", "sequence_mean", "constant"):
        got = []
        for e in (batch, kept):
            policy = small_policy()
            state = state_of(policy, None, Recorder(policy.parameters()))
            metrics = ppo.update(state, e, parts(kl=exact), settings(aggregation), 0.3)
            got.append((state.optimizer.gradients[0], metrics))
        assert (got[0][0] - got[1][0]).abs().max() < 1e-10
        assert got[0][1] == pytest.approx(got[1][1], abs=1e-10)


@pytest.mark.usefixtures("double")
def test_each_term_is_there_if_and_only_if_it_is_switched_on():
    """kl.place reward: no KL in the loss; loss and both: the same KL in the loss. Coefficient 0: term gone."""
    reward = updated(settings(place="reward"))[0]
    assert torch.equal(reward, updated(settings(place="reward"), beta=99.0)[0])
    assert torch.equal(reward, updated(settings(place="loss"), beta=0.0)[0])
    loss, both = updated(settings(place="loss"))[0], updated(settings(place="both"))[0]
    assert torch.equal(loss, both)
    assert not torch.allclose(loss, reward)
    assert not torch.allclose(loss, updated(settings(entropy=0.0))[0])
    assert not torch.allclose(loss, updated(settings(clip=0.0))[0])
    head = slice(-17, None)  # the value head's 16 weights and its bias come last
    assert (updated(settings(value=0.0))[0][head] == 0).all()
    assert (loss[head] != 0).any()


def test_value_errors_by_hand():
    """V_old 1, clip 0.2: the larger of the plain and the clipped square, halved; 0 switches the clip off."""
    policy = small_policy()
    batch = experience_on(rollout_with_gaps(), policy).rows(torch.tensor([0]))
    one = torch.ones(1, 6)
    batch = replace(batch, old_values=one, returns=torch.tensor([[2.0, 2.0, 0.0, 1.5, 1.0, 2.0]]))
    values = torch.tensor([[1.5, 1.1, 1.5, 1.5, 0.0, 3.0]])
    # far: 2 - 1.2 = 0.8; near: 0.9; away from the return: 1.5; at it but outside: 0.3; below: 1.0; beyond: max(1, 0.8)
    clipped = [0.32, 0.405, 1.125, 0.045, 0.5, 0.5]
    assert ppo.value_error(values, batch, torch.tensor(0.2))[0].tolist() == pytest.approx(clipped)
    plain = [0.125, 0.405, 1.125, 0.0, 0.5, 0.5]
    assert ppo.value_error(values, batch, torch.tensor(0.0))[0].tolist() == pytest.approx(plain)


def test_the_gradient_is_cut_to_its_largest_norm():
    policy = small_policy()
    optimizer = Recorder(policy.parameters())
    config = settings().model_copy(update={"ppo": PPOConfig(minibatch_size=ROWS, grad_clip=0.5)})
    batch = experience_on(rollout_with_gaps(), policy)
    metrics = ppo.update(state_of(policy, None, optimizer), batch, parts(kl=exact), config, 0.3)
    free = updated(settings())[0]
    assert metrics["policy/grad_norm"] == pytest.approx(float(free.norm()), rel=1e-4)  # logged as it was before the cut
    assert free.norm() > 0.5
    # torch divides by norm + 1e-6
    assert torch.allclose(optimizer.gradients[0], free * (0.5 / free.norm()), rtol=1e-5, atol=1e-7)


def test_in_equal_shapes_the_first_ratio_is_exactly_one():
    """The same rows in the same order with and without a graph: not one bit of difference."""
    policy, rollout = small_policy(), random_rollout()
    with torch.no_grad():
        old = policy.forward_pass(rollout)
    zero = torch.zeros_like(old.logprobs)
    batch = Experience(
        rollout=rollout, old_logprobs=old.logprobs, ref_logprobs=zero, old_values=old.values, kl=zero,
        scores=torch.zeros(5), rewards=zero, advantages=zero + 1, returns=zero, ref_log_dist=old.log_dist,
    )  # fmt: skip
    metrics = ppo.update(state_of(policy, None, Recorder(policy.parameters())), batch, parts(), settings(), 0.0)
    assert metrics["log_ratio"] == 0.0
    assert metrics["policy/approxkl_avg"] == 0.0
    assert metrics["val/clipfrac_avg"] == 0.0
    assert metrics["val/ratio"] == 1.0


def test_a_policy_that_disagrees_with_itself_is_an_error():
    guards.check_same_policy(1e-3, 4)
    with pytest.raises(RuntimeError, match=r"iteration 5: \|log ratio\| = 0.00101"):
        guards.check_same_policy(1.01e-3, 4)


# ---- the gradient of whole iterations, enumerated ----------------------------------------------------------
#
# The responses of up to two tokens over {EOS, a, b} form a small tree. A policy is a table of logits, one row a
# prefix, whose probabilities are fractions of 24, so that a batch of 24 can hold every response exactly in proportion
# to its probability: the gradient of an iteration on that batch *is* the expected gradient, without any noise, and
# `train` runs as it is (only `ppo.sample` is replaced by that batch). The optimum of J = E[r] - beta KL(pi, ref) is
# known in closed form, pi*(y) ~ ref(y) exp(r(y) / beta); read backwards, r = beta log(pi* / ref) + any constant makes
# a table of our choice the optimum. Advantages are reward-to-go, so no value function blurs the picture.

HERE = [[4, 8, 12], [2, 2, 4], [6, 3, 3]]  # of EOS, a, b, as counts of 24: first token; after a; after b
OPTIMUM = [[12, 4, 8], [1, 2, 1], [2, 2, 4]]  # another table, to be the optimum when the policy stands at HERE
FROZEN = [[5, 3, 4], [3, 6, 1], [1, 1, 2]]  # the reference: any chances do
BETA = 0.6
TOKENS = (EOS, 3, 4)


class Table(torch.nn.Module):
    """A policy as logits of EOS, a, b for each prefix: nothing, a, b. Horizon 1 has only the first. Its V is 0."""

    value_scale = torch.ones(())

    def rescale_values(self, scale: float) -> None:
        """0 in any unit."""

    def __init__(self, chances: list[list[int]], horizon: int) -> None:
        super().__init__()
        probs = torch.tensor(chances if horizon == 2 else chances[:1], dtype=torch.float64)
        self.logits = torch.nn.Parameter((probs / probs.sum(dim=1, keepdim=True)).log())

    def forward_pass(self, rollout: Rollout) -> PolicyOutput:
        actions = torch.tensor([[TOKENS.index(i) if i else 0 for i in row] for row in rollout.response_ids.tolist()])
        states = torch.zeros_like(actions)
        states[:, 1:] = actions[:, :-1]
        log_dist = self.logits.log_softmax(-1)[states]
        taken = log_dist.gather(-1, actions.unsqueeze(-1)).squeeze(-1).where(rollout.response_mask, 0.0)
        zero = torch.zeros_like(taken)
        return PolicyOutput(taken, zero, zero[:, 0], lambda: zero, lambda rows: log_dist[rows])

    def log_probability(self, response: tuple[int, ...]) -> torch.Tensor:
        """log pi(y), walking down the tree."""
        total, state = torch.tensor(0.0), 0
        for action in response:
            total, state = total + self.logits[state].log_softmax(-1)[action], action
        return total


def responses(horizon: int) -> list[tuple[int, ...]]:
    """All of them, as actions 0 = EOS, 1 = a, 2 = b: a response ends with EOS or at the horizon."""
    return [(0,), (1,), (2,)] if horizon == 1 else [(0,), *((x, y) for x in (1, 2) for y in (0, 1, 2))]


def rewards_for(target, horizon: int) -> dict[tuple[int, ...], float]:
    """r(y) under which `target` is the optimum at BETA."""
    optimum, frozen = Table(target, horizon), Table(FROZEN, horizon)
    ratios = {y: optimum.log_probability(y) - frozen.log_probability(y) for y in responses(horizon)}
    return {y: BETA * log_ratio.item() + 0.7 for y, log_ratio in ratios.items()}


def rollout_in_proportion(chances, horizon: int) -> tuple[Rollout, list[tuple[int, ...]]]:
    """24 responses, each as often as the table says."""
    rows = [y for y in responses(horizon) for _ in range(chances[0 if len(y) == 1 else y[0]][y[-1]])]
    assert len(rows) == 24
    ids = torch.tensor([[TOKENS[a] for a in y] + [PAD] * (horizon - len(y)) for y in rows])
    one, names = torch.ones(24, 1, dtype=torch.bool), ("",) * 24
    ended, group = torch.tensor([0 in y for y in rows]), torch.zeros(24, dtype=torch.long)
    return Rollout(one.long(), one, ids, ids != PAD, ids != PAD, ended, group, names, names, {}), rows


@pytest.fixture
def gradient(monkeypatch, double):
    """A function: the gradient of one iteration of `train` with the policy at HERE or at OPTIMUM."""

    def run(at, kl: str, place: str, horizon: int, *, times=1.0, beta=BETA, whitening="batch") -> torch.Tensor:
        """times: r and beta are both multiplied by it, which leaves the optimum where it is."""
        policy, reference = Table(at, horizon), Table(FROZEN, horizon).requires_grad_(False)
        rollout, rows = rollout_in_proportion(at, horizon)
        reward = rewards_for(OPTIMUM, horizon)
        scores = torch.tensor([times * reward[y] for y in rows])
        scored = Scores(scores, torch.ones(24, dtype=torch.bool), torch.zeros(rollout.mask.shape))
        monkeypatch.setattr(ppo, "sample", lambda *_: rollout)
        optimizer = Recorder(policy.parameters())
        config = Config(
            ppo=PPOConfig(iterations=1, epochs=1, minibatch_size=24, micro_batch_size=10, grad_clip=1e9),
            kl=KLConfig(place=place, coef=times * beta),
        )
        used = parts(KL[kl], reward_to_go, ratio, reward=lambda *_: scored, whitening=whitening)
        list(ppo.train(state_of(policy, reference, optimizer, beta=times * beta), used, config))
        return optimizer.gradients[0]

    return run


def ascent(at, horizon: int) -> torch.Tensor:
    """dJ / d logits by autograd through the sum over all responses, from the definition of J."""
    policy, frozen, reward = Table(at, horizon), Table(FROZEN, horizon), rewards_for(OPTIMUM, horizon)
    total = torch.tensor(0.0)
    for y in responses(horizon):
        log_pi = policy.log_probability(y)
        total = total + log_pi.exp() * (reward[y] - BETA * (log_pi - frozen.log_probability(y).detach()))
    total.backward()
    return policy.logits.grad.flatten()


RIGHT = [  # estimator, place, horizon of what has the exact gradient of J
    *((kl, place, 2) for kl, place in [("k1", "reward"), ("exact", "both"), ("k1", "both"), ("k3", "both")]),
    *((kl, place, 1) for kl, place in [("k1", "reward"), ("exact", "both"), ("exact", "loss"), ("k2", "loss")]),
]
EVERY = [(kl, place, horizon) for kl in KL for place in ("reward", "loss", "both") for horizon in (1, 2)]


def test_the_enumerated_optimum_is_one(double):
    """The construction itself: dJ is 0 at OPTIMUM and not at HERE."""
    for horizon in (1, 2):
        assert ascent(OPTIMUM, horizon).abs().max() < 1e-12
        assert ascent(HERE, horizon).norm() > 0.05


@pytest.mark.parametrize(("kl", "place", "horizon"), RIGHT)
def test_the_expected_update_is_zero_at_the_optimum_and_climbs_the_objective_elsewhere(kl, place, horizon, gradient):
    for times in (1.0, 10.0):
        assert gradient(OPTIMUM, kl, place, horizon, times=times).abs().max() < 1e-10
        step = -gradient(HERE, kl, place, horizon, times=times)  # gradient descent on the loss
        up = ascent(HERE, horizon)
        assert step.norm() > 1e-2
        assert (step / step.norm() - up / up.norm()).abs().max() < 1e-10


@pytest.mark.parametrize(("kl", "place", "horizon"), EVERY)
def test_ten_times_the_reward_and_the_beta_is_the_same_update(kl, place, horizon, gradient):
    """Whitening divides the reward's part by the advantages' scale; the KL in the loss must be divided by it too.
    Without whitening both parts are ten times larger."""
    for whitening, factor in (("batch", 1), ("population", 1), ("scale", 1), ("none", 10)):
        one = gradient(HERE, kl, place, horizon, whitening=whitening)
        ten = gradient(HERE, kl, place, horizon, times=10.0, whitening=whitening)
        assert (ten - factor * one).abs().max() < 1e-10
        assert one.norm() > 1e-2


def test_the_whole_gradient_of_a_kl_in_the_loss_by_hand(gradient, double):
    """One token: -sum pi A grad log pi / std + beta / std sum pi d grad log pi; scores' std over the 24 by hand."""
    _, rows = rollout_in_proportion(HERE, 1)
    reward = rewards_for(OPTIMUM, 1)
    scores = [reward[y] for y in rows]
    mean = sum(scores) / 24
    std = math.sqrt(sum((s - mean) ** 2 for s in scores) / 23)
    expected = -ascent(HERE, 1) / std
    for kl in ("exact", "k2"):
        assert (gradient(HERE, kl, "loss", 1) - expected).abs().max() < 1e-10


@pytest.mark.parametrize(("kl", "place", "horizon"), [("exact", "reward", 1), ("k1", "loss", 1), ("k1", "loss", 2)])
def test_a_kl_in_the_wrong_place_regularises_nothing(kl, place, horizon, gradient):
    """What config.doubts warns of: the direction is that of beta = 0, so the optimum is no fixed point."""
    wrong, none = gradient(OPTIMUM, kl, place, horizon), gradient(OPTIMUM, kl, place, horizon, beta=0.0)
    assert wrong.norm() > 1e-2
    assert (wrong / wrong.norm() - none / none.norm()).abs().max() < 1e-10


@pytest.mark.parametrize(("kl", "place"), [("exact", "reward"), ("exact", "loss"), ("k2", "loss"), ("k2", "both")])
def test_half_a_kl_misses_the_optimum_of_two_tokens(kl, place, gradient):
    """Only the future part, only the immediate part, or a biased estimate: not 0 at the optimum."""
    assert gradient(OPTIMUM, kl, place, 2).norm() > 1e-3


# ---- runs of a small transformer that samples --------------------------------------------------------------

PROMPTS = ("ab", "c", "dab", "fgh")
TIMES = ("time/", "eps", "tokens_per_s")


def prompts(rows=32, each=1):
    """A prompt stream: the same prompts every iteration, of unequal length."""
    texts = [PROMPTS[i % len(PROMPTS)] for i in range(rows // each)]
    batch = PromptBatch.build(texts, [{} for _ in texts], Letters(), responses=each)
    return lambda step: batch


def share_of_c(rollout: Rollout, step: int) -> Scores:
    """The reward of these tests: which part of the letters is a c."""
    scores = torch.tensor([text.count("c") / max(1, len(text)) for text in rollout.completions])
    return Scores(scores, torch.ones(len(rollout), dtype=torch.bool), torch.zeros(rollout.mask.shape))


def noise(rollout: Rollout, step: int) -> Scores:
    """The control: numbers that have nothing to do with the text."""
    scores = torch.rand(len(rollout), generator=seeded(1000 + step))
    return replace(share_of_c(rollout, step), total=scores)


def some_unscored(rollout: Rollout, step: int) -> Scores:
    """Every second row gets no score; a number left in `scores` must not matter."""
    given = share_of_c(rollout, step)
    valid = torch.arange(len(rollout)) % 2 == 0
    return replace(given, valid=valid, total=torch.where(valid, given.total, 1e6))


def nobody(rollout: Rollout, step: int) -> Scores:
    return replace(share_of_c(rollout, step), valid=torch.zeros(len(rollout), dtype=torch.bool))


def fresh_policy(seed=0, **options) -> Policy:
    """Near uniform, values 0: as small as it gets."""
    trunk = small_trunk(seed, replace(CONFIG, num_hidden_layers=1), scale=0.02)
    return Policy(trunk, Sampler(1.0, banned=(PAD, BOS), stops=(EOS,)), **options)


def fresh_state(policy=None, lr=1e-2, beta=0.05, optimizer=None, **controller) -> ppo.PPOState:
    policy = policy or fresh_policy()
    optimizer = optimizer or torch.optim.AdamW(policy.parameters(), lr=lr, eps=1e-5, weight_decay=0.0)
    return state_of(policy, Reference(policy), optimizer, beta, **controller)


def setup(iterations=3, tokens=4, place="reward", seed=0, aggregation="token_mean", truncation=None, **ppo_options):
    options = {"epochs": 2, "minibatch_size": 16, **ppo_options}
    return Config(
        run=RunConfig(seed=seed),
        ppo=PPOConfig(iterations=iterations, **options),
        kl=KLConfig(place=place),
        loss=LossConfig(aggregation=aggregation),
        sampler=SamplerConfig(max_new_tokens=tokens),
        truncation=truncation or TruncationConfig(),
    )


def run(state=None, config=None, reward=share_of_c, rows=32, each=1, first=1, **chosen):
    """(state, experiences, metrics) of a whole run."""
    state = state or fresh_state()
    used = parts(reward=reward, prompts=prompts(rows, each), **chosen)
    done = list(ppo.train(state, used, config or setup()))
    assert [step for step, _, _ in done] == list(range(first, first + len(done)))
    return state, [e for _, e, _ in done], [m for _, _, m in done]


def timeless(metrics: list[dict]) -> list[dict]:
    return [{name: value for name, value in m.items() if not name.startswith(TIMES)} for m in metrics]


def test_a_run_counts_what_it_does_and_its_first_ratio_is_one():
    state, experiences, metrics = run()
    lengths = [int(e.rollout.response_mask.sum()) for e in experiences]
    assert (state.step, state.updates, state.episodes, state.tokens) == (3, 3 * 2 * 2, 3 * 32, sum(lengths))
    assert [m["episode"] for m in metrics] == [32, 64, 96]
    for m, e in zip(metrics, experiences, strict=True):
        assert m["policy/first_log_ratio"] <= 1e-5
        assert m["count/updates"] == 4
        assert {"time/rollout", "time/score", "time/learn"} < m.keys()
        assert m["val/num_eos_tokens"] == e.rollout.terminated.sum() > 0
        assert m["objective/scores"] == pytest.approx(e.scores.mean().item(), abs=1e-6)
        assert all(math.isfinite(value) for value in m.values())
    assert metrics[0]["objective/kl"] == pytest.approx(0, abs=1e-5)  # the policy starts as the reference
    assert metrics[2]["objective/kl"] != 0


def test_prompts_and_rewards_are_those_of_the_iteration():
    asked, scored = [], []

    def prompts_of(step):
        asked.append(step)
        return PromptBatch.build(["abc"[step]], [{}], Letters(), responses=4)

    def reward(rollout, step):
        scored.append((step, rollout.prompts[0]))
        return share_of_c(rollout, step)

    config = setup(iterations=3, tokens=1, epochs=1)
    list(ppo.train(fresh_state(), parts(reward=reward, prompts=prompts_of), config))
    assert asked == [0, 1, 2]
    assert scored == [(0, "a"), (1, "b"), (2, "c")]


def test_what_the_loop_learns_from_fits_together():
    """rewards = -beta kl + score on the last token; returns = advantages before whitening + values."""
    _, experiences, metrics = run(config=setup(iterations=2), advantage=mc)
    e, beta = experiences[1], 0.05
    assert (e.kl - (e.old_logprobs - e.ref_logprobs))[e.mask].abs().max() < 1e-6
    for row in range(len(e)):
        n = int(e.mask[row].sum())
        expected = [-beta * x for x in e.kl[row, :n].tolist()]
        expected[-1] += e.scores[row].item()
        assert e.rewards[row, :n].tolist() == pytest.approx(expected, abs=1e-6)
        togo = [sum(expected[t:]) for t in range(n)]
        assert e.returns[row, :n].tolist() == pytest.approx(togo, abs=1e-6)  # of mc: the rewards to go themselves
    plain = e.returns - e.old_values
    kept = plain[e.mask]
    white = (kept - kept.mean()) / kept.std()
    assert (e.advantages[e.mask] - white).abs().max() < 1e-5
    assert metrics[1]["objective/non_score_reward"] == pytest.approx(-beta * metrics[1]["objective/kl"], rel=1e-5)


def test_every_epoch_sees_every_response_once_in_an_order_of_its_own(monkeypatch):
    seen, plain = [], ppo.update

    def watched(state, batch, *rest):
        seen.append(batch.rollout.group.tolist())
        return plain(state, batch, *rest)

    monkeypatch.setattr(ppo, "update", watched)
    run(config=setup(iterations=2, epochs=3, minibatch_size=12))
    assert [len(rows) for rows in seen] == [12, 12, 8] * 6
    epochs = [tuple(row for rows in seen[i : i + 3] for row in rows) for i in range(0, 18, 3)]
    assert all(sorted(epoch) == list(range(32)) for epoch in epochs)
    assert len(set(epochs)) == 6


def test_the_order_of_the_minibatches_belongs_to_seed_iteration_and_epoch():
    """12 rows have 479 million orders: those of different numbers differ, those of the same are one."""
    e, state = rows_of_a_rollout(12), torch.get_rng_state()

    def order(seed, step, epoch):
        batches = ppo.minibatches(e, setup(seed=seed, minibatch_size=5), step, epoch)
        return tuple(row for batch in batches for row in batch.rollout.group.tolist())

    asked = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({order(*numbers) for numbers in asked}) == 4
    assert order(0, 0, 0) == order(0, 0, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_scores_are_normalised_by_all_that_came_before():
    """Two iterations: the second is measured against the 64 scores of both, by hand."""
    given = []

    def remember(rollout, step):
        given.append(share_of_c(rollout, step).total)
        return share_of_c(rollout, step)

    state, experiences, _ = run(config=setup(iterations=2, score_normalize=True), reward=remember)
    both = torch.cat(given).double()
    assert state.score_moments.count == 64
    assert state.score_moments.total == pytest.approx(both.sum().item())
    expected = (given[1].double() - both.mean()) / both.std()
    assert torch.allclose(experiences[1].scores.double(), expected, atol=1e-5)


def test_the_loop_learns_from_scores_after_the_rules_and_from_token_rewards():
    """Cut to .6, and a response without EOS loses 2: what learns sees that. The .5 of each first token has its place,
    and is cut with its score."""

    def reward(rollout, step):
        given = share_of_c(rollout, step)
        tokens = torch.zeros(rollout.mask.shape)
        tokens[:, 0] = 0.5
        return replace(given, total=given.total + 0.5, token_rewards=tokens)

    config = setup(iterations=2, score_clip=0.6, truncation=TruncationConfig(rule="penalty", value=2.0))
    _, experiences, _ = run(config=config, reward=reward)
    e = experiences[1]
    shares, ended = share_of_c(e.rollout, 1).total.tolist(), e.rollout.terminated.tolist()
    assert min(shares) < 0.1 < max(shares)  # some were cut to .6
    assert set(ended) == {True, False}
    for row, (share, over) in enumerate(zip(shares, ended, strict=True)):
        n = int(e.mask[row].sum())
        cut = min(share + 0.5, 0.6)
        placed = 0.5 * cut / (share + 0.5)
        expected = [-0.05 * x for x in e.kl[row, :n].tolist()]
        expected[0] += placed
        expected[-1] += cut - (0.0 if over else 2.0) - placed
        assert e.rewards[row, :n].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("place", ["reward", "loss", "both"])
def test_the_place_of_the_kl_in_a_run(place):
    _, experiences, metrics = run(config=setup(iterations=2, place=place), kl=exact)
    assert metrics[1]["objective/kl"] > 0
    penalty = 0.05 * metrics[1]["objective/kl"] if place != "loss" else 0.0
    assert metrics[1]["objective/non_score_reward"] == pytest.approx(-penalty, rel=1e-5)
    gap = experiences[1].scores.mean().item() - penalty
    assert metrics[1]["objective/rlhf_reward"] == pytest.approx(gap, abs=1e-5)


def test_one_seed_gives_identical_metrics_and_weights_and_another_different_ones():
    (a, sampled, first), (b, _, second) = run(), run()
    assert timeless(first) == timeless(second)
    assert torch.equal(flat(a.policy), flat(b.policy))
    c, resampled, other = run(config=setup(seed=1))
    texts, again, others = (e.rollout.completions for e in (*sampled[:2], resampled[0]))
    assert len({texts, again, others}) == 3  # fresh numbers for another iteration, and for another seed
    assert timeless(first) != timeless(other)
    assert not torch.equal(flat(a.policy), flat(c.policy))


def test_the_global_random_state_moves_nothing():
    a, _, first = run()

    def restless(rollout, step):
        torch.manual_seed(step * 77)
        torch.rand(5)
        return share_of_c(rollout, step)

    b, _, second = run(reward=restless)
    assert timeless(first) == timeless(second)
    assert torch.equal(flat(a.policy), flat(b.policy))


def test_between_two_yields_the_state_is_complete():
    """Stopped after two of four iterations: the same object goes on with a new generator, and so does a copy of
    exactly what the state's fields hold."""
    config = setup(iterations=4, score_normalize=True)
    controlled = {"target": 0.001, "horizon": 100}
    whole, _, expected = run(fresh_state(**controlled), config)
    state = fresh_state(**controlled)
    loop = ppo.train(state, parts(reward=share_of_c, prompts=prompts()), config)
    for _ in range(2):
        next(loop)
    loop.close()
    copied = fresh_state(fresh_policy(seed=8), **controlled)
    copied.policy.load_state_dict({name: value.clone() for name, value in state.policy.state_dict().items()})
    copied.reference = state.reference
    copied.optimizer.load_state_dict(copy.deepcopy(state.optimizer.state_dict()))
    copied.schedule.load_state_dict(state.schedule.state_dict())
    copied.controller = replace(state.controller)
    for field in ("score_moments", "value_moments", "step", "updates", "episodes", "tokens"):
        setattr(copied, field, getattr(state, field))
    assert {f.name for f in fields(state)} == {
        *("policy", "reference", "optimizer", "schedule", "controller", "penalty"),
        *("score_moments", "value_moments", "step", "updates", "episodes", "tokens"),
    }
    for resumed in (state, copied):
        ended, _, metrics = run(resumed, config, first=3)
        assert timeless(metrics) == timeless(expected[2:])
        assert torch.equal(flat(ended.policy), flat(whole.policy))
        assert (ended.step, ended.updates, ended.tokens) == (whole.step, whole.updates, whole.tokens)


def exact_score(policy: Policy) -> float:
    """E[share of c] of two tokens after the prompts: the sum over all 111 responses, no sampling."""
    bodies = [[]] + [[x] for x in range(3, 13)]
    rows = [[EOS]] + [[*body, last] for body in bodies[1:] for last in (EOS, *range(3, 13))]
    ids = torch.tensor([row + [PAD] * (2 - len(row)) for row in rows])
    texts = tuple(Letters().decode([i for i in row if i != EOS]) for row in rows)
    n, total = len(rows), 0.0
    for text in PROMPTS:
        prompt = torch.tensor([[BOS, *Letters().encode(text)]]).expand(n, -1)
        blank = torch.zeros(n, dtype=torch.bool)
        rollout = Rollout(
            prompt, torch.ones_like(prompt, dtype=torch.bool), ids, ids != PAD, ids != PAD, blank, blank.long(), texts,
            texts, {},
        )  # fmt: skip
        with torch.no_grad():
            chance = policy.forward_pass(rollout).logprobs.sum(dim=1).exp()
        assert chance.sum().item() == pytest.approx(1, abs=1e-4)
        total += (chance * share_of_c(rollout, 0).total).sum().item()
    return total / len(PROMPTS)


def test_the_reward_is_learned_and_a_random_reward_gains_nothing():
    """Exact expected scores before and after; the same settings, only the reward differs."""
    config = setup(iterations=7, tokens=2, epochs=2)
    before = exact_score(fresh_policy())
    assert before == pytest.approx(0.09, abs=0.02)  # near one letter of ten, and EOS
    learned, *_ = run(fresh_state(), config)
    assert exact_score(learned.policy) > before + 0.4
    # no direction to climb: what a policy drifts to in noise is as likely below as above
    drifts = [
        exact_score(run(fresh_state(), setup(iterations=7, tokens=2, seed=s), noise)[0].policy) for s in (0, 1, 2)
    ]
    assert abs(sum(drifts) / 3 - before) < 0.05


def test_rows_that_nobody_scored_leave_mask_whitening_and_loss():
    state = fresh_state(optimizer=None)
    state = fresh_state(state.policy, optimizer=Recorder(state.policy.parameters()))
    config = setup(iterations=1, epochs=1, minibatch_size=32)
    _, [e], [metrics] = run(state, config, some_unscored)
    odd = torch.arange(32) % 2 == 1
    assert not e.mask[odd].any()
    assert torch.equal(e.mask[~odd], e.rollout.response_mask[~odd])
    assert (e.scores[odd] == 0).all()
    assert (e.advantages[odd] == 0).all()
    assert metrics["count/masked_rows"] == 16
    assert metrics["objective/scores"] == pytest.approx(e.scores[~odd].mean().item())
    kept = (e.returns - e.old_values)[~odd][e.mask[~odd]]
    assert torch.allclose(e.advantages[~odd][e.mask[~odd]], (kept - kept.mean()) / kept.std(), atol=1e-5)
    alone = Recorder(state.policy.parameters())
    ppo.update(state_of(state.policy, None, alone), e.rows((~odd).nonzero().flatten()), parts(), config, 0.05)
    assert torch.allclose(state.optimizer.gradients[0], alone.gradients[0], rtol=1e-4, atol=1e-6)
    assert alone.gradients[0].norm() > 1e-3


def test_truncated_responses_ruled_out_leave_the_mask():
    config = setup(iterations=1, truncation=TruncationConfig(rule="mask"))
    _, [e], _ = run(config=config, rows=64)
    assert 0 < e.rollout.terminated.sum() < 64
    assert torch.equal(e.mask.any(dim=1), e.rollout.terminated)


def test_a_bootstrapped_response_is_worth_what_the_value_head_says_of_its_end():
    policy = fresh_policy()
    torch.nn.init.normal_(policy.value_head.weight, generator=seeded(1))
    config = setup(iterations=1, epochs=1, truncation=TruncationConfig(rule="bootstrap"))
    state = fresh_state(policy, optimizer=Recorder(policy.parameters()))
    _, [e], _ = run(state, config, advantage=mc, rows=64)
    with torch.no_grad():
        after = policy.forward_pass(e.rollout).next_value
    rest = e.returns[:, 0] - e.rewards.sum(dim=1)
    assert torch.allclose(rest, torch.where(e.rollout.terminated, 0.0, after), atol=1e-5)
    assert rest.abs().max() > 0.1


def test_a_minibatch_without_mask_is_skipped():
    def only_first(rollout, step):
        return replace(share_of_c(rollout, step), valid=torch.arange(len(rollout)) == 0)

    state, _, [metrics] = run(config=setup(iterations=1, epochs=3, minibatch_size=8), reward=only_first)
    assert metrics["count/updates"] == 3  # of four minibatches an epoch, one has a row
    assert state.updates == 3


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # torch: no optimiser step came before
def test_an_iteration_that_nobody_scored_changes_no_weight():
    state = fresh_state()
    before = flat(state.policy)
    _, _, [metrics] = run(state, setup(iterations=1), nobody)
    assert torch.equal(flat(state.policy), before)
    assert metrics["count/updates"] == 0
    assert metrics["count/masked_rows"] == 32
    assert state.step == 1


# ---- what is not finite ------------------------------------------------------------------------------------


class Remembers(torch.optim.AdamW):
    """Keeps the weights after every step."""

    def step(self, closure=None):
        super().step(closure)
        self.seen = torch.cat([p.detach().flatten() for p in self.param_groups[0]["params"]])


def broken_on_call(function, call: int, spoil):
    """The function, with its result spoiled on the call-th call."""
    count = iter(range(1, 10**6))
    return lambda *args, **kwargs: (
        spoil(function(*args, **kwargs)) if next(count) == call else function(*args, **kwargs)
    )


def spoil_one(x: torch.Tensor) -> torch.Tensor:
    """The first position of the first row (always on the mask) becomes NaN, and so does what flows back from it."""
    return x * torch.ones_like(x).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(NAN))


@pytest.mark.parametrize(
    ("module", "function", "call", "named"),
    [
        (ppo, "value_error", 3, "loss/value_avg = nan"),
        (terms, "loss_kl", 3, "policy/grad_norm = nan"),
        (ppo, "place_rewards", 2, "rewards is not finite"),
        (terms, "kl", 2, "rewards is not finite"),
    ],
)
def test_a_nan_is_named_and_the_weights_are_those_before_that_update(monkeypatch, module, function, call, named):
    monkeypatch.setattr(module, function, broken_on_call(getattr(module, function), call, spoil_one))
    policy = fresh_policy()
    optimizer = Remembers(policy.parameters(), lr=1e-2)
    state = fresh_state(policy, optimizer=optimizer)
    start = flat(policy)
    with pytest.raises(DivergedError, match=named) as caught:
        run(state, setup(place="both", minibatch_size=32), rows=64)
    assert "iteration" in str(caught.value) or "advantage function" in str(caught.value)
    assert torch.equal(flat(policy), optimizer.seen)
    assert not torch.equal(flat(policy), start)  # updates went before it
    assert state.updates == (2 if call == 3 else 4)


@pytest.mark.parametrize(
    "name", ["old_logprobs", "ref_logprobs", "old_values", "kl", "rewards", "advantages", "returns"]
)
def test_every_tensor_of_the_experience_is_checked_on_the_mask_and_only_there(name):
    policy = small_policy()
    e = experience_on(random_rollout(ROWS), policy)
    e = replace(e, **{n: torch.nan_to_num(getattr(e, n)) for n in ("old_logprobs", "old_values", "kl", "advantages")})
    dirty = getattr(e, name).masked_fill(~e.mask, NAN)
    guards.check_experience(replace(e, **{name: dirty}), 2)
    with pytest.raises(DivergedError, match=f"{name} is not finite: iteration 3"):
        guards.check_experience(replace(e, **{name: spoil_one(dirty)}), 2)


def test_values_that_are_not_finite_are_named_though_no_function_reads_them():
    policy = fresh_policy()
    torch.nn.init.constant_(policy.value_head.bias, NAN)
    with pytest.raises(DivergedError, match="old_values is not finite: iteration 1"):
        run(fresh_state(policy), advantage=reward_to_go)


def test_an_infinite_gradient_stops_before_the_step():
    policy = fresh_policy()
    optimizer = Remembers(policy.parameters(), lr=1e-2)
    state, calls = fresh_state(policy, optimizer=optimizer), iter(range(1, 100))
    policy.model.norm.weight.register_hook(lambda g: g * float("inf") if next(calls) == 2 else g)
    with pytest.raises(DivergedError, match=r"policy/grad_norm = (inf|nan): iteration 1"):
        run(state)
    assert state.updates == 1
    assert torch.equal(flat(policy), optimizer.seen)


def forgetful_policy(monkeypatch) -> Policy:
    """Each forward pass finds every token .01 nats more likely than the one before."""
    policy = fresh_policy()
    plain, calls = policy.forward_pass, iter(range(100))

    def forgetful(rollout):
        out = plain(rollout)
        return replace(out, logprobs=out.logprobs + 0.01 * next(calls) * rollout.response_mask)

    monkeypatch.setattr(policy, "forward_pass", forgetful)
    return policy


def test_a_policy_that_scores_itself_differently_the_second_time_is_stopped(monkeypatch):
    with pytest.raises(RuntimeError, match=r"iteration 1: .* before any update"):
        run(fresh_state(forgetful_policy(monkeypatch)))


def test_in_bfloat16_that_may_be_rounding_and_is_only_logged(monkeypatch):
    config = setup(iterations=1, precision="bfloat16")
    _, _, [m] = run(fresh_state(forgetful_policy(monkeypatch)), config)
    assert m["policy/first_log_ratio"] == pytest.approx(0.01, abs=1e-4)


# ---- who learns what ---------------------------------------------------------------------------------------


def test_critic_warmup_trains_the_value_head_and_nothing_else():
    for options in ({}, {"separate_critic": True}):
        policy = fresh_policy(**options)
        trunk, head = flat(policy.model), flat(policy.value_head)
        loop = ppo.train(
            fresh_state(policy), parts(reward=share_of_c, prompts=prompts()), setup(iterations=3, critic_warmup=2)
        )
        for _ in range(2):
            _, _, metrics = next(loop)
            assert metrics["policy/grad_norm"] > 0
        assert torch.equal(flat(policy.model), trunk)
        assert not torch.equal(flat(policy.value_head), head)
        assert metrics["policy/approxkl_avg"] == pytest.approx(0, abs=1e-10)
        next(loop)
        assert not torch.equal(flat(policy.model), trunk)


def test_an_advantage_function_without_values_leaves_the_value_head_alone():
    policy = fresh_policy()
    torch.nn.init.normal_(policy.value_head.weight, generator=seeded(1))
    trunk, head = flat(policy.model), flat(policy.value_head)
    run(fresh_state(policy), advantage=reward_to_go)
    assert torch.equal(flat(policy.value_head), head)
    assert not torch.equal(flat(policy.model), trunk)
    run(fresh_state(policy), advantage=mc)
    assert not torch.equal(flat(policy.value_head), head)


def greedy_by_hand(policy: Policy, text: str, tokens: int) -> str:
    """The most likely allowed token, by a full forward pass each time."""
    ids, out = [BOS, *Letters().encode(text)], []
    while len(out) < tokens:
        with torch.no_grad():
            logits = policy.logits(policy.model(torch.tensor([ids]))[0, -1])
        logits[[PAD, BOS]] = float("-inf")
        token = int(logits.argmax())
        if token == EOS:
            break
        ids, out = [*ids, token], [*out, token]
    return Letters().decode(out)


def test_greedy_scores_are_decoded_and_scored_only_for_a_function_that_names_them():
    seen, calls = [], []

    def remax(scores, greedy_scores, mask):
        seen.append((scores.clone(), greedy_scores.clone()))
        return (scores - greedy_scores).unsqueeze(1) * mask

    def first_letter(rollout, step):
        calls.append(step)
        scores = torch.tensor([float(ord(text[0])) if text else 0.0 for text in rollout.completions])
        return replace(share_of_c(rollout, step), total=scores)

    policy = small_policy()
    state = fresh_state(policy, optimizer=Recorder(policy.parameters()))
    run(state, setup(iterations=1), first_letter, advantage=remax)
    expected = [greedy_by_hand(policy, PROMPTS[i % 4], 4) for i in range(32)]
    assert seen[0][1].tolist() == [float(ord(text[0])) if text else 0.0 for text in expected]
    assert len(set(expected)) > 1
    assert not torch.equal(*seen[0])
    assert calls == [0, 0]
    run(fresh_state(), setup(iterations=1), first_letter)
    assert calls == [0, 0, 0]


def test_the_advantage_function_gets_what_it_names():
    """Responses of a prompt share their group; next values come only with the rule that asks for them."""
    seen = {}

    def nosy(rewards, values, mask, scores, group, logprobs, ref_logprobs, kl, terminated, bootstrap_values):
        seen.update(locals())
        return torch.zeros_like(rewards)

    _, [e], [metrics] = run(config=setup(iterations=1), advantage=nosy, each=4)
    assert seen["group"].tolist() == [i // 4 for i in range(32)]
    assert torch.equal(seen["terminated"], e.rollout.terminated)
    assert torch.equal(seen["logprobs"], e.old_logprobs)
    assert torch.equal(seen["ref_logprobs"], e.ref_logprobs)
    assert torch.equal(seen["kl"], e.kl)
    assert torch.equal(seen["rewards"], e.rewards)
    assert torch.equal(seen["scores"], e.scores)
    assert seen["bootstrap_values"].tolist() == [0.0] * 32
    assert metrics["count/flat_batches"] == 1  # equal advantages: whitened to 0, and counted


# ---- epochs and beta ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "epochs"), [(1e-9, 1), (1e9, 5), (None, 5)])
def test_the_epochs_stop_at_the_target_kl(target, epochs):
    state, _, [metrics] = run(config=setup(iterations=1, epochs=5, target_kl=target))
    assert metrics["count/updates"] == state.updates == 2 * epochs


def test_one_update_over_three_halves_of_the_target_is_too_far():
    near, far = {"policy/approxkl_avg": 0.375}, {"policy/approxkl_avg": 0.376}
    assert not ppo.moved_too_far([near, near], 0.25)
    assert ppo.moved_too_far([near, far, near], 0.25)
    assert not ppo.moved_too_far([far], None)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
def test_an_iteration_ends_with_its_counters_and_speeds(monkeypatch):
    """Two seconds for 6 responses, after 3 iterations of 10 responses and 20 tokens in all."""
    monkeypatch.setattr("minirlhf.rl.laps.perf_counter", iter([5.0, 5.5, 7.0]).__next__)
    laps, e = Laps(), rows_of_a_rollout(6)
    laps.end("time/rollout")
    state, running, n = fresh_state(), Moments(1.0, 2.0, 3), int(e.rollout.response_mask.sum())
    state.step, state.episodes, state.tokens = 3, 10, 20
    metrics = {"count/updates": 1.0, "objective/kl": 0.0}
    ppo.finish_iteration(state, e, running, setup(), metrics, laps)
    assert (state.step, state.episodes, state.tokens, state.score_moments) == (4, 16, 20 + n, running)
    assert metrics == {
        "count/updates": 1.0, "objective/kl": 0.0, "time/rollout": 0.5, "time/learn": 1.5,
        "episode": 16.0, "eps": 3.0, "tokens_per_s": n / 2,
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
@pytest.mark.parametrize(("updates", "step", "beta"), [(4.0, 2, 0.6), (0.0, 2, 0.5), (4.0, 1, 0.5), (0.0, 1, 0.5)])
def test_beta_is_steered_after_updates_that_taught_the_policy(updates, step, beta):
    """A warm-up of 2 iterations; a KL far over its target raises beta by a fifth if a rollout is its horizon."""
    state = fresh_state(beta=0.5, target=1.0, horizon=6)
    state.step = step
    metrics = {"count/updates": updates, "objective/kl": 99.0}
    ppo.finish_iteration(state, rows_of_a_rollout(6), NOTHING, setup(critic_warmup=2), metrics, Laps())
    assert state.controller.beta == pytest.approx(beta)


def test_the_adaptive_beta_is_logged_as_it_was_used():
    """The metric is the beta of that iteration; the next one follows from its KL by the rule, by hand."""
    state, experiences, metrics = run(fresh_state(beta=0.3, target=0.05, horizon=320), setup(iterations=4), kl=exact)
    beta = 0.3
    for m, e in zip(metrics, experiences, strict=True):
        assert m["kl/coef"] == pytest.approx(beta, rel=1e-6)
        kl = sum(e.kl[i][e.mask[i]].sum().item() for i in range(32)) / 32
        assert m["objective/kl"] == pytest.approx(kl, rel=1e-4, abs=1e-6)
        beta *= 1 + min(max(m["objective/kl"] / 0.05 - 1, -0.2), 0.2) * 32 / 320
    assert state.controller.beta == pytest.approx(beta, rel=1e-6)
    assert metrics[0]["kl/coef"] != metrics[1]["kl/coef"]
    assert {m["kl/coef"] for m in run()[2]} == {0.05}


def test_the_learning_rate_is_logged_as_it_was_used():
    state = fresh_state(lr=0.01)
    state.schedule = LambdaLR(state.optimizer, lambda step: 1 - step / 4)
    _, _, metrics = run(state)
    assert [m["lr"] for m in metrics] == pytest.approx([0.01, 0.0075, 0.005])


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")  # with the rule `mask` nothing is learned
def test_a_greedy_baseline_is_a_shaped_return():
    """Its score minus beta times the KL of its own tokens, where the KL is in the reward; else its score."""
    seen = {}

    def nosy(rewards, greedy_scores):
        seen["greedy"] = greedy_scores.clone()
        return torch.zeros_like(rewards)

    def letters(rollout, step):
        scores = torch.tensor([float(len(text)) for text in rollout.completions])
        return replace(share_of_c(rollout, step), total=scores)

    found = {}
    for place in ("reward", "both", "loss"):
        policy = small_policy()
        state = state_of(policy, Reference(small_policy(5)), Recorder(policy.parameters()), beta=0.3)
        config = setup(iterations=1, place=place)
        _, _, _ = run(state, config, letters, advantage=nosy)
        found[place] = seen["greedy"]
    cut = [i for i, x in enumerate(PROMPTS * 8) if len(greedy_by_hand(small_policy(), x, 4)) == 4]
    for rule in ("mask", "bootstrap"):
        config = setup(iterations=1, place="loss", truncation=TruncationConfig(rule=rule))
        policy = small_policy()
        state = state_of(policy, Reference(small_policy(5)), Recorder(policy.parameters()), beta=0.3)
        _, [e], _ = run(state, config, letters, advantage=nosy)
        assert cut
        if rule == "mask":
            assert not e.mask[cut].any()  # no score of its own, so there is nothing to compare with
        else:
            assert (seen["greedy"][cut] != 0).all()  # V of the state behind the cut, in place of a score
    text = greedy_by_hand(small_policy(), PROMPTS[0], 4)
    ids = [BOS, *Letters().encode(PROMPTS[0]), *Letters().encode(text)] + ([EOS] if len(text) < 4 else [])
    start, kl = 1 + len(PROMPTS[0]), 0.0
    for sign, model in ((1, small_policy()), (-1, small_policy(5))):
        with torch.no_grad():
            dist = model.sampler.log_dist(model.logits(model.model(torch.tensor([ids]))[0]))
        kl += sign * sum(float(dist[t - 1, ids[t]]) for t in range(start, len(ids)))
    rows = [i for i in range(32) if i % 4 == 0]
    assert found["loss"][rows].tolist() == [len(text)] * 8
    for place in ("reward", "both"):  # in both of them the KL is in the reward that the baseline stands beside
        assert found[place][rows].tolist() == pytest.approx([len(text) - 0.3 * kl] * 8, abs=1e-4)


def test_a_greedy_baseline_obeys_the_rules_of_the_scores_and_is_none_of_them():
    """It is normalised by the scores of the run so far, which it does not join, and loses 3 if it has no EOS."""
    seen, given = [], []

    def nosy(rewards, greedy_scores):
        seen.append(greedy_scores.clone())
        return torch.zeros_like(rewards)

    def letters(rollout, step):
        scores = torch.tensor([float(len(text)) for text in rollout.completions])
        given.append((scores, rollout.terminated))
        return replace(share_of_c(rollout, step), total=scores)

    config = setup(iterations=2, score_normalize=True, truncation=TruncationConfig(rule="penalty", value=3.0))
    state, _, _ = run(config=config, reward=letters, advantage=nosy)
    assert state.score_moments.count == 64  # of 2 x 32 sampled responses
    assert any(not ended.all() for _, ended in given[1::2])
    for i in range(2):
        so_far = torch.cat([scores for scores, _ in given[: 2 * i + 1 : 2]]).double()
        scores, ended = given[2 * i + 1]
        # beta x KL of the greedy tokens is in it, too: .05 x at most a few tenths of a nat after one iteration
        expected = (scores.double() - so_far.mean()) / so_far.std() - 3.0 * ~ended
        assert torch.allclose(seen[i].double(), expected, atol=1e-5 if i == 0 else 0.1)


def test_the_penalty_of_n10_is_the_loops_and_moves_with_the_drift():
    betas = []

    def nosy(logprobs, old_logprobs, advantages, beta):
        betas.append(beta)
        return ratio(logprobs, old_logprobs, advantages)

    state = fresh_state()
    state.penalty = Penalty(4.0, target=1e9)  # the drift is always below: halved after every iteration
    _, _, metrics = run(state, setup(iterations=3, epochs=1), loss=nosy)
    assert sorted(set(betas), reverse=True) == [4.0, 2.0, 1.0]
    assert [m["penalty/coef"] for m in metrics] == [4.0, 2.0, 1.0]
    assert state.penalty.beta == 0.5


@pytest.mark.usefixtures("double")
def test_the_penalty_is_steered_by_what_the_epochs_have_come_to():
    """One update a rollout: before it the drift is 0, and a penalty steered by that would die. The KL is by hand."""
    state = fresh_state(lr=0.1)
    old = copy.deepcopy(state.policy)
    state.penalty = Penalty(4.0, target=1e-9)
    _, [e], [m] = run(state, setup(iterations=1, epochs=1, minibatch_size=32, micro_batch_size=5))
    assert m["policy/approxkl_avg"] < 1e-20
    with torch.no_grad():
        d = (state.policy.forward_pass(e.rollout).logprobs - old.forward_pass(e.rollout).logprobs)[e.mask]
    assert m["penalty/kl"] == pytest.approx(float((d.exp() * d - d.exp() + 1).mean()), rel=1e-9)
    assert m["penalty/kl"] > 1e-4
    assert state.penalty.beta == 8.0


def test_coefficients_wait_until_the_policy_learns():
    """While the critic warms up the policy stands still: its distances, all 0, are no reason to let go of it."""
    state = fresh_state(beta=0.5, target=1.0, horizon=1)
    state.penalty = Penalty(4.0, target=1e-9)
    _, _, metrics = run(state, setup(iterations=3, critic_warmup=2))
    assert [m["kl/coef"] for m in metrics] == [0.5] * 3
    assert ["penalty/kl" in m for m in metrics] == [False, False, True]
    assert (state.controller.beta, state.penalty.beta) == (0.4, 8.0)  # the third rollout is still the reference's
    assert "penalty/kl" not in run(config=setup(iterations=1))[2][0]  # a fixed penalty costs no pass


# ---- the unit of V -----------------------------------------------------------------------------------------


def test_a_new_unit_changes_no_value():
    policy = small_policy()
    e = experience_on(rollout_with_gaps(), policy)
    before = policy.forward_pass(e.rollout)
    policy.rescale_values(7.0)
    after = policy.forward_pass(e.rollout)
    assert torch.allclose(before.values, after.values, atol=1e-6)
    assert torch.allclose(before.next_value, after.next_value, atol=1e-6)
    assert float(policy.value_scale) == 7.0
    assert float(before.values.detach().abs().max()) > 0.1


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("options", [{}, {"score_slot": "after"}])
def test_c_times_the_rewards_and_c_times_beta_teach_the_same_policy(options):
    """A power of 2 only changes exponents: all is equal to the bit, but V is c times as large."""

    def learned(c: float):
        def reward(rollout, step):
            given = share_of_c(rollout, step)
            return replace(given, total=c * given.total)

        config = setup(**options)
        config = config.model_copy(update={"loss": LossConfig(value_clip=0.2)})
        return run(fresh_state(beta=c * 0.05), config, reward, advantage=gae, rows=48)

    state, experiences, metrics = learned(1.0)
    assert float(state.policy.value_scale) != 1.0
    for c in (2.0**-10, 64.0):
        scaled, seen, logged = learned(c)
        trunk = {name: x for name, x in state.policy.state_dict().items() if name != "value_scale"}
        assert all(torch.equal(x, scaled.policy.state_dict()[name]) for name, x in trunk.items())
        assert torch.equal(seen[-1].old_values, c * experiences[-1].old_values)
        assert scaled.policy.value_scale == c * state.policy.value_scale
        for one, many in zip(metrics, logged, strict=True):
            assert many["loss/value_avg"] == c * c * one["loss/value_avg"]  # metrics are in the reward's unit
            assert many["objective/scores"] == c * one["objective/scores"]
            assert many["policy/grad_norm"] == one["policy/grad_norm"]
            assert many["val/clipfrac_avg"] == one["val/clipfrac_avg"]
    assert any(m["val/clipfrac_avg"] > 0 for m in metrics)


def test_the_unit_of_v_is_the_std_of_the_first_scores_and_then_stands():
    """By hand from the first 64 scores; two rollouts of 32 decide it, a third does not. No V, no unit."""
    state = fresh_state()
    _, experiences, _ = run(state, setup(iterations=3), rows=32, advantage=gae)
    first = torch.cat([e.scores for e in experiences[:2]]).double()
    assert float(state.policy.value_scale) == pytest.approx(float(first.std()), rel=1e-6)
    assert state.value_moments.count == 96
    assert float(run(advantage=reward_to_go)[0].policy.value_scale) == 1
    cutting = setup(iterations=1, truncation=TruncationConfig(rule="bootstrap"))
    some, [e], _ = run(config=cutting, advantage=gae)
    assert 2 < e.rollout.terminated.sum() < 32  # a cut response has no score
    ended = e.scores[e.rollout.terminated].double()
    assert float(some.policy.value_scale) == pytest.approx(float(ended.std()), rel=1e-6)
    flat_scores, _, _ = run(reward=lambda r, s: replace(share_of_c(r, s), total=torch.full((32,), 0.1)), advantage=gae)
    assert float(flat_scores.policy.value_scale) == 1  # all scores alike: rounding is no unit


def measured(scores, seen=NOTHING, unit=1.0, rule="keep", ended=None):
    """(state, active before, active after) of scores that are measured in a run that has seen `seen`."""
    policy = small_policy()
    policy.rescale_values(unit)
    state = state_of(policy, None, Recorder(policy.parameters()))
    state.value_moments = seen
    rollout = random_rollout(len(scores))
    rollout = rollout if ended is None else replace(rollout, terminated=torch.tensor(ended))
    with torch.no_grad():
        active = policy.forward_pass(rollout)
    zero = torch.zeros(rollout.mask.shape)
    shaped = ShapedScores(torch.tensor(scores), rollout, zero, zero[:, 0], NOTHING)
    return state, active, ppo.measure_values(state, shaped, active, rule)


def test_the_unit_of_v_by_hand():
    """Of 4 scores with the sum of squares 4, and one that is 0, the variance is 4 / 4; of 64 and one, 64 / 64."""
    few, many = Moments(0.0, 4.0, 4), Moments(0.0, 64.0, 64)

    def unit(seen, before, scores=(0.0,)):
        return float(measured(list(scores), seen, before)[0].policy.value_scale)

    assert unit(NOTHING, 1.0, [0.5, -0.5]) == pytest.approx(0.5**0.5)  # the first scores decide, less than 1 or more
    assert unit(few, 0.75) == unit(few, 1.5) == 1.0  # as do all up to the 64th
    assert unit(many, 0.75) == 0.75
    assert unit(many, 1.5) == 1.5
    assert unit(many, 0.5) == 0.5  # two units, and no more
    assert unit(many, 0.49) == 1.0


@pytest.mark.parametrize(("rule", "count", "unit"), [("bootstrap", 2, 2**0.5), ("keep", 3, 2.0)])
def test_a_cut_response_has_a_score_of_its_own_unless_v_stands_for_it(rule, count, unit):
    """1 and -1 ended, -3 was cut: a variance of 2 / 1 of the two, of (2^2 + 0 + 2^2) / 2 of all about -1."""
    state, _, _ = measured([1.0, -1.0, -3.0], rule=rule, ended=[True, True, False])
    assert state.value_moments.count == count
    assert float(state.policy.value_scale) == pytest.approx(unit)


@pytest.mark.parametrize("mean", [3.5, -3.5, 3.0, -3.0])
def test_v_begins_at_the_first_mean_if_that_is_over_three_standard_deviations(mean):
    """Four scores one off the mean and one at it: the variance is 4 / 4. Elsewhere than in tokens V is 0."""
    scores = [mean - 1, mean + 1, mean - 1, mean + 1, mean]
    state, before, after = measured(scores)
    there, moved = random_rollout(5).response_mask, mean if abs(mean) > 3 else 0.0
    assert torch.allclose(after.values, before.values + moved * there, atol=1e-5)
    assert torch.allclose(after.next_value, before.next_value + moved, atol=1e-5)
    again = state.policy.forward_pass(random_rollout(5))  # what the head says from now on
    assert torch.allclose(after.values, again.values, atol=1e-5)
    assert torch.allclose(after.next_value, again.next_value, atol=1e-5)
    _, before, later = measured(scores, seen=Moments(0.0, 1.0, 2))
    assert later is before  # not of the first scores


@pytest.mark.parametrize("advantage", [mc, reward_to_go])
def test_a_cut_response_is_worth_the_v_that_the_loop_goes_on_with(advantage):
    """20 + share of c: mc reads V, which begins there; reward_to_go does not, and V is as it was."""
    policy = small_policy()
    rollout = random_rollout(8)
    assert 1 < rollout.terminated.sum() < 8
    with torch.no_grad():
        active = policy.forward_pass(rollout)
    scores = replace(share_of_c(rollout, 0), total=torch.linspace(20.0, 21.0, 8))
    state, config = fresh_state(policy), setup(truncation=TruncationConfig(rule="bootstrap"))
    shaped, moved = ppo.shape(state, parts(advantage=advantage), config, None, rollout, scores, active)
    if advantage is mc:
        start = scores.total[rollout.terminated].mean()
        assert state.value_moments.count == rollout.terminated.sum()
    else:
        start = torch.tensor(0.0)
    assert torch.allclose(moved.next_value, active.next_value + start, atol=1e-4)
    assert torch.equal(shaped.bootstrap, torch.where(rollout.terminated, 0.0, moved.next_value))


def test_greedy_responses_by_hand_and_what_has_none_leaves_the_mask():
    """One token to each prompt: EOS has its score, another one is cut and worth V of the state behind it, less the KL.

    The first has no score. None of them moves the global generator.
    """
    given = []

    def nosy(rewards, greedy_scores):
        return torch.zeros_like(rewards)

    def reward(rollout, step):
        given.append((rollout, step))
        return replace(share_of_c(rollout, step), valid=torch.arange(8) > 0)

    policy, frozen = small_policy(), Reference(small_policy(5))
    state = state_of(policy, frozen, Recorder(policy.parameters()), beta=0.3)
    used = parts(advantage=nosy, reward=reward)
    config, asked = setup(tokens=1, truncation=TruncationConfig(rule="bootstrap")), prompts(8)(0)
    rollout, before = random_rollout(8), torch.get_rng_state()
    with torch.no_grad():
        active = policy.forward_pass(rollout)
        shaped, _ = ppo.shape(state, used, config, asked, rollout, share_of_c(rollout, 0), active)
        [(greedy, step)] = given
        here, there = policy.forward_pass(greedy), frozen.forward_pass(greedy)
    assert step == 0
    assert list(greedy.completions) == [greedy_by_hand(policy, text, 1) for text in asked.texts]
    worth = torch.where(greedy.terminated, share_of_c(greedy, 0).total, here.next_value)
    expected = worth - 0.3 * (here.logprobs - there.logprobs).sum(dim=1)
    assert torch.allclose(shaped.greedy_scores[1:], expected[1:], atol=1e-5)
    assert not greedy.terminated.all()
    assert shaped.rollout.mask.any(dim=1).tolist() == [False] + [True] * 7
    assert torch.equal(torch.get_rng_state(), before)


def scores_by_step(*of_steps):
    """A reward that gives the share of c in each iteration times a factor, plus a constant: (factor, constant) each."""

    def reward(rollout, step):
        factor, constant = of_steps[step]
        given = share_of_c(rollout, step)
        return replace(given, total=factor * given.total + constant)

    return reward


def test_the_unit_of_v_grows_with_scores_that_vary_more_and_waits_for_such_that_vary():
    config = setup(iterations=3)
    late, _, _ = run(config=config, reward=scores_by_step((0, 0.1), (0, 0.1), (1, 0)), rows=64, advantage=gae)
    assert 0.05 < float(late.policy.value_scale) < 0.2  # 64 equal scores, and 64 more, were no reason to stop looking
    grown, experiences, _ = run(config=config, reward=scores_by_step((1e-4, 0), (1, 0), (1, 0)), rows=64, advantage=gae)
    scores = torch.cat([e.scores for e in experiences[:2]]).double()
    assert float(grown.policy.value_scale) == pytest.approx(float(scores.std()), rel=1e-6)


@pytest.mark.usefixtures("double")
def test_v_begins_at_the_mean_of_scores_that_are_far_from_0():
    """10 + share of c: V is 10 and something from the first rollout on, which GAE then sees. Nearer ones begin at 0."""
    _, experiences, metrics = run(config=setup(iterations=2), reward=scores_by_step((1, 10), (1, 10)), advantage=gae)
    first, mean = experiences[0], experiences[0].scores.mean()
    assert torch.allclose(first.old_values[first.mask], mean.expand(int(first.mask.sum())))
    # V is the same everywhere and the policy is still the reference, so only the last delta, score - mean, is not 0:
    # lambda^k (score - mean), k tokens before the end.
    before_end = first.mask.sum(dim=1, keepdim=True) - first.mask.cumsum(dim=1)
    by_hand = 0.95**before_end * (first.scores - mean).unsqueeze(1)
    assert torch.allclose((first.returns - first.old_values)[first.mask], by_hand[first.mask], atol=1e-10)
    assert metrics[0]["loss/value_avg"] < 0.1  # of numbers near one, where V = 0 would give 50
    assert abs(float(experiences[1].old_values[experiences[1].mask].mean()) - float(mean)) < 0.5
    _, [near], _ = run(config=setup(iterations=1), advantage=gae)
    assert (near.old_values == 0).all()


def test_v_begins_at_scores_that_do_not_vary_yet():
    """Rollouts that score 1000 alike have a mean and no std: V is 1000 from the first on, and its unit comes later."""
    rewards = scores_by_step((0, 1000), (0, 1000), (1, 1000))
    state, experiences, metrics = run(config=setup(iterations=3), reward=rewards, advantage=gae)
    for e in experiences:
        assert (e.old_values[e.mask] - 1000).abs().max() < 2
    assert max(m["loss/value_avg"] for m in metrics) < 2
    assert 0 < float(state.policy.value_scale) < 1
    _, [near], _ = run(config=setup(iterations=1), reward=scores_by_step((0, 2)), advantage=gae)
    assert (near.old_values[near.mask] == 2).all()  # without a spread every mean but 0 is far from 0


@pytest.mark.usefixtures("double")
def test_the_rounding_of_equal_scores_is_no_unit_of_v():
    """The moments of 24 times 0.1 have a std of rounding, 1e-9; V in such a unit would have a loss of 1e18."""
    state, _, _ = run(config=setup(iterations=1), reward=scores_by_step((0, 0.1)), rows=24, advantage=gae)
    assert state.value_moments.std() > 0
    assert float(state.policy.value_scale) == 1


def test_an_iteration_without_advantages_says_nothing_about_the_penalty():
    state = fresh_state()
    state.penalty = Penalty(4.0, target=1e9)
    _, _, [m] = run(state, setup(iterations=1), scores_by_step((0, 1.0)), advantage=reward_to_go, whitening="batch")
    assert m["count/flat_batches"] == 1
    assert (m["penalty/kl"], state.penalty.beta) == (0.0, 4.0)


def test_a_score_behind_the_eos_teaches_v_there_and_moves_the_advantage():
    """ppo.score_slot = after: V behind the EOS learns the score; what is logged of the rollout is the same."""
    plain, _, [before] = run(config=setup(iterations=1))
    learned, [e], [after] = run(config=setup(iterations=1, score_slot="after"))
    assert torch.equal(e.slot_returns.isfinite(), e.rollout.terminated)
    ended = e.rollout.terminated
    assert torch.equal(e.slot_returns[ended], e.scores[ended])
    assert not torch.equal(flat(plain.policy), flat(learned.policy))
    assert before["objective/scores"] == after["objective/scores"]
    assert before["objective/rlhf_reward"] == after["objective/rlhf_reward"]
    with torch.no_grad():
        first = fresh_policy().forward_pass(e.rollout).next_value[ended]
        now = learned.policy.forward_pass(e.rollout).next_value[ended]
    assert (now - e.scores[ended]).square().mean() < (first - e.scores[ended]).square().mean()
