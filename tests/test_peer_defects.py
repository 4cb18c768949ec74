"""Defects that other RLHF projects have had, one test or a few for each: what would show them here.

Most are stated on one iteration of `train`, so that it does not matter in which of its parts the defect would sit;
what was sampled is known from the sampler itself.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from minirlhf import ppo
from minirlhf.builtin.advantages import mc
from minirlhf.builtin.kl import exact, k1
from minirlhf.builtin.losses import ppo_clip
from minirlhf.config.layers import load_config
from minirlhf.config.schema import Config, KLConfig, LossConfig, PPOConfig, SamplerConfig
from minirlhf.errors import ConfigError, PluginError
from minirlhf.models.generate import PromptBatch
from minirlhf.models.policy import Policy, Reference
from minirlhf.models.rollout import Rollout
from minirlhf.models.sampler import Sampler
from minirlhf.rewards.batch import RewardBatch, TrainerState
from minirlhf.rewards.call import RewardModels
from minirlhf.rewards.shape import Scores
from minirlhf.rl.controllers import KLController, Penalty
from minirlhf.rl.experience import Experience
from minirlhf.rl.metrics import rollout_metrics
from minirlhf.stages.pretrain import token_losses, windows
from minirlhf.store import checkpoint
from minirlhf.tensors import Moments, whiten
from minirlhf.text.tokenizer import train_tokenizer
from tests.helpers import (
    BOS,
    EOS,
    PAD,
    Letters,
    Recorder,
    built,
    padded,
    random_rollout,
    seeded,
    shaped_as,
    small_policy,
    small_trunk,
)
from tests.plugins.files import refusal

pytestmark = pytest.mark.usefixtures("double")
NAN = float("nan")
TEXTS = ("abc", "j", "fffff", "ab") * 4
STOPS = 5  # seed of a policy whose responses of six tokens end in EOS about as often as not


def state_of(policy: Policy, beta=0.1, reference=None, **controller) -> ppo.PPOState:
    optimizer = Recorder(policy.parameters())
    schedule = LambdaLR(optimizer, lambda step: 1.0)
    steered = KLController(beta, **controller), Penalty(1.0)
    return ppo.PPOState(
        policy, reference or Reference(policy), optimizer, schedule, *steered, *[Moments(0.0, 0.0, 0)] * 2
    )


def parts(reward=None, kl=k1, texts=TEXTS, tokenizer=None) -> ppo.Parts:
    tokenizer = tokenizer or Letters()
    prompts = PromptBatch.build(texts, [{} for _ in texts], tokenizer)
    chosen = built("kl", kl), built("advantage", mc), built("loss", ppo_clip)
    return ppo.Parts(lambda step: prompts, reward, *chosen, "batch", tokenizer)


def by_length(rollout: Rollout, step: int) -> Scores:
    """100 plus the number of tokens: a mean far from 0."""
    scores = 100.0 + rollout.response_mask.sum(dim=1)
    return Scores(scores, torch.ones(len(rollout), dtype=torch.bool), torch.zeros(rollout.mask.shape))


def iteration(state: ppo.PPOState, reward=by_length, tokens=6, **chosen) -> tuple[Experience, dict]:
    """(experience, metrics) of one more iteration of `train` whose epoch is one minibatch."""
    config = Config(
        ppo=PPOConfig(iterations=state.step + 1, epochs=1, minibatch_size=len(TEXTS)),
        kl=KLConfig(place="reward"),
        sampler=SamplerConfig(max_new_tokens=tokens),
    )
    [(_, experience, metrics)] = ppo.train(state, parts(reward, **chosen), config)
    return experience, metrics


@pytest.fixture
def drawn(monkeypatch):
    """(logits, uniform, ids) of every call of Sampler.sample."""
    steps, plain = [], Sampler.sample

    def watched(self, logits, uniform):
        steps.append((logits, uniform, plain(self, logits, uniform)))
        return steps[-1][2]

    monkeypatch.setattr(Sampler, "sample", watched)
    return steps


def sampled(drawn) -> list[list[int]]:
    """What each row drew, up to and with its first EOS."""
    rows = torch.stack([ids for _, _, ids in drawn], dim=1).tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


# ---- whitening ---------------------------------------------------------------------------------------------


def test_whitened_advantages_have_mean_zero_and_variance_one():
    """torchtune adds the mean back: 10, 12, 14 (std 2) would become 11, 12, 13."""
    x = torch.tensor([[10.0, 12.0, 14.0]])
    assert whiten(x, x > 0, "batch")[0].tolist() == [[-1.0, 0.0, 1.0]]

    def below_three_units(rollout, step):  # V begins at 0 there, not at the mean
        given = by_length(rollout, step)
        spread = given.total - given.total.mean()
        return replace(given, total=spread + 2.5 * spread.std())

    e, _ = iteration(state_of(small_policy()), below_three_units)
    kept, plain = e.advantages[e.mask], (e.returns - e.old_values)[e.mask]
    assert plain.mean() > plain.std()  # there was a mean to take away
    assert kept.mean().item() == pytest.approx(0, abs=1e-10)
    assert kept.var().item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("junk", [0.0, 1e30, float("inf"), NAN])
@pytest.mark.parametrize(
    ("variant", "scale", "expected"),
    [("batch", 2.0, [-2, 0, 2]), ("population", math.sqrt(8 / 3), [-2, 0, 2]), ("scale", 2.0, [10, 12, 14])],
)
def test_padding_is_in_no_statistic_of_the_whitening(variant, scale, expected, junk):
    """trlX took mean and variance over the whole batch, padding too."""
    x = torch.tensor([[10.0, 12.0, junk], [14.0, junk, junk]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    white, divisor = whiten(x, mask, variant)
    assert divisor == pytest.approx(scale, rel=1e-12)
    assert white[mask].tolist() == pytest.approx([e / scale for e in expected], rel=1e-12)
    assert (white[~mask] == 0).all()


def test_a_single_token_is_whitened_to_zero():
    """TRL: the unbiased variance of one number is 0 / 0, and NaN went into the weights."""
    x = torch.tensor([[3.0, NAN]])
    white, scale = whiten(x, torch.tensor([[True, False]]), "batch")
    assert (white.tolist(), scale) == ([[0.0, 0.0]], 1.0)
    state = state_of(small_policy())
    e, metrics = iteration(state, tokens=1, texts=("ab",))
    assert e.advantages.tolist() == [[0.0]]
    unknown = {"objective/scores_std", "value/explained_variance"}  # of one number
    assert {name for name, value in metrics.items() if not math.isfinite(value)} == unknown
    assert state.optimizer.gradients[0].isfinite().all()


def test_advantages_without_variance_are_exactly_zero():
    """The same division by 0, or of rounding noise by its own standard deviation: 0.1 is not 0.1 to the last bit."""
    x = torch.full((2, 7), 0.1, dtype=torch.float32)
    x[0, ::2] = x[0, ::2].nextafter(torch.tensor(1.0, dtype=torch.float32))
    for values in (x, torch.full((2, 7), 0.1), torch.zeros(2, 7)):
        white, scale = whiten(values, torch.ones(2, 7, dtype=torch.bool), "batch")
        assert (white == 0).all()
        assert scale == 1.0
    policy = small_policy()
    torch.nn.init.zeros_(policy.value_head.weight)
    e, _ = iteration(state_of(policy), lambda *given: replace(by_length(*given), total=torch.full((16,), 0.1)))
    assert e.rewards.max() == 0.1
    assert (e.advantages == 0).all()


# ---- EOS and truncation ------------------------------------------------------------------------------------


def test_the_eos_that_was_sampled_is_in_the_mask_is_learned_and_carries_the_score(drawn, monkeypatch):
    """TRL's PPO with pad == eos masked every EOS out of the loss: the model never learned to stop."""
    policy, seen = small_policy(STOPS), []
    plain = policy.forward_pass

    def watched(rollout):
        out = plain(rollout)
        if out.logprobs.requires_grad:
            of_eos = out.logprobs[rollout.response_ids == EOS].sum()
            [to_weights] = torch.autograd.grad(of_eos, policy.model.embed_tokens.weight, retain_graph=True)
            out.logprobs.retain_grad()
            seen.append((rollout.group, out.logprobs, to_weights))
        return out

    monkeypatch.setattr(policy, "forward_pass", watched)
    e, _ = iteration(state_of(policy))
    [(order, logprobs, to_weights)] = seen
    assert to_weights.norm() > 0.1
    responses = sampled(drawn)
    ended = [row for row, ids in enumerate(responses) if ids[-1] == EOS]
    assert 2 < len(ended) < len(TEXTS)
    tokens = sum(len(ids) for ids in responses)
    gradient = logprobs.grad[order.argsort()]
    for row in ended:
        last = len(responses[row]) - 1
        assert e.rollout.response_ids[row, last] == EOS
        assert e.rollout.terminated[row]
        assert e.mask[row].tolist() == [t <= last for t in range(e.mask.shape[1])]
        # kl = 0 before the first update: the reward is the score alone, and all of it is here
        assert e.rewards[row].tolist() == pytest.approx([(101 + last) * (t == last) for t in range(6)], abs=1e-9)
        # d/dlogp of -A rho / n at rho = 1
        assert gradient[row, last].item() == pytest.approx(-e.advantages[row, last].item() / tokens, rel=1e-9)
        assert gradient[row, last] != 0


def test_pad_is_not_eos_and_pretraining_predicts_the_eos():
    """TRL's PPO, once more: the loss of [BOS] a b [EOS] is that of [BOS] a b and -log p(EOS | BOS a b)."""
    tokenizer = train_tokenizer(["ab ab"], 259)
    assert len({tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id}) == 3
    trunk, [ids] = small_trunk(), windows(["ab"], Letters(), 8)
    assert ids == [BOS, 3, 4, EOS]
    whole, tokens = token_losses(trunk, [ids, [BOS, 3]])
    without, _ = token_losses(trunk, [ids[:-1], [BOS, 3]])
    logits = (trunk.embed_tokens.weight @ trunk(torch.tensor([ids[:-1]]))[0, -1]).tolist()
    expected = math.log(sum(math.exp(x) for x in logits)) - logits[EOS]
    assert tokens == 4
    assert (whole - without).item() == pytest.approx(expected, abs=1e-10)


def test_no_eos_is_forced_into_a_response_that_was_cut(drawn):
    """OpenRLHF (238) overwrote the last token of a truncated response with EOS, which the policy never chose."""
    e, _ = iteration(state_of(small_policy(STOPS)), tokens=3)
    cut = [row for row, ids in enumerate(sampled(drawn)) if EOS not in ids]
    assert 2 < len(cut) < len(TEXTS)
    for row in cut:
        assert e.rollout.response_ids[row].tolist() == sampled(drawn)[row]
        assert e.mask[row].all()
        assert not e.rollout.terminated[row]


# ---- what was sampled is what is scored --------------------------------------------------------------------


class Lossy(Letters):
    """Every text decodes to the same letters: what is encoded again is something else."""

    def decode(self, ids):
        return "hi"


def test_the_ids_that_are_learned_from_are_those_that_were_sampled(drawn, monkeypatch):
    """trlX decoded the responses and tokenised the texts again for training."""
    policy, seen = small_policy(STOPS), []
    plain = policy.forward_pass
    monkeypatch.setattr(policy, "forward_pass", lambda rollout: seen.append(rollout) or plain(rollout))
    e, _ = iteration(state_of(policy), tokenizer=Lossy())
    assert e.rollout.completions == ("hi",) * len(TEXTS)
    assert e.rollout.completion_id_lists == sampled(drawn)
    assert e.rollout.prompt_id_lists == [[BOS, *Letters().encode(text)] for text in TEXTS]
    assert len(seen) == 2  # after sampling, and in the epoch
    for rollout in seen:
        assert rollout.completion_id_lists == [sampled(drawn)[row] for row in rollout.group.tolist()]


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_the_temperature_of_sampling_is_that_of_the_log_probabilities(temperature, drawn):
    """minimind scored at 1 whatever it sampled at. Here p = softmax(logits / T) by hand: every token is its inverse
    CDF at the uniform number, and policy and reference score it with log p."""
    e, _ = iteration(state_of(small_policy(STOPS, temperature)))
    for row, ids in enumerate(sampled(drawn)):
        for t, token in enumerate(ids):
            logits, uniform = drawn[t][0][row].tolist(), drawn[t][1][row].item()
            weights = [0.0 if i in (PAD, BOS) else math.exp(x / temperature) for i, x in enumerate(logits)]
            assert sum(weights[:token]) <= (uniform + 1e-9) * sum(weights)
            assert sum(weights[: token + 1]) >= (uniform - 1e-9) * sum(weights)
            expected = pytest.approx(math.log(weights[token] / sum(weights)), abs=1e-9)
            assert e.old_logprobs[row, t].item() == expected
            assert e.ref_logprobs[row, t].item() == expected


@pytest.mark.parametrize("cut", ["top_k=5", "top_p=0.9", "min_p=0.1"])
def test_no_run_trains_with_a_cut_distribution(cut):
    """nanochat samples with top-k and scores without: tokens it cannot draw have a probability there."""
    with pytest.raises(ConfigError, match=rf"sampler\.{cut.partition('=')[0]}"):
        load_config("tiny", sets=[f"sampler.{cut}"])


# ---- padding and splits ------------------------------------------------------------------------------------

NOISE = torch.randn(5, 5, 6, generator=seeded(9), dtype=torch.float64)


def on_junk(rollout: Rollout, policy: Policy, junk: float) -> tuple[Experience, torch.Tensor]:
    """An experience off the policy's own numbers, and entropies; junk and EOS ids in the padding."""
    real = rollout.response_mask
    extra = (0, real.shape[1] - NOISE.shape[2])
    noise = torch.nn.functional.pad(NOISE, extra).masked_fill(~real, junk)
    reference = Reference(small_policy(40)).forward_pass(rollout)
    with torch.no_grad():
        now = policy.forward_pass(rollout)
    e = Experience(
        rollout=replace(rollout, response_ids=rollout.response_ids.where(real, EOS)),
        old_logprobs=now.logprobs + 0.3 * noise[0], ref_logprobs=reference.logprobs.masked_fill(~real, junk),
        old_values=now.values + 0.3 * noise[1], kl=noise[2], scores=torch.arange(5.0), rewards=noise[2],
        advantages=noise[3], returns=now.values + noise[4], ref_log_dist=reference.log_dist,
    )  # fmt: skip
    return e, noise[4].abs()


def updated(e: Experience, policy: Policy, aggregation="token_mean", micro=None) -> tuple[torch.Tensor, dict]:
    """(gradient, metrics) of one update in which every term of the loss is at work."""
    config = Config(
        ppo=PPOConfig(minibatch_size=5, micro_batch_size=micro, grad_clip=1e9),
        kl=KLConfig(place="loss"),
        loss=LossConfig(aggregation=aggregation, entropy_coef=0.02),
    )
    state = state_of(policy)
    metrics = ppo.update(state, e, parts(kl=exact), config, 0.3)
    return state.optimizer.gradients[0], metrics


@pytest.mark.parametrize("junk", [7.0, NAN])
@pytest.mark.parametrize(("left", "right"), [(0, 0), (3, 5)])
def test_no_metric_is_a_mean_over_padding(left, right, junk):
    """TRL's PPO averaged ratio, entropy and approximate KL over the padding, too."""
    policy, rollout = small_policy(), random_rollout(5)
    real = rollout.mask
    assert real.sum() < real.numel()
    shift = 0.3 * NOISE[0][real]  # old - new
    e, entropy = on_junk(padded(rollout, left, right), policy, junk)
    gradient, metrics = updated(e, policy)
    metrics |= rollout_metrics(e, shaped_as(e), entropy, 0.1 * e.kl, 0.1, parts().advantage, EOS)
    assert metrics["val/ratio"] == pytest.approx((-shift).exp().mean().item(), abs=1e-10)
    assert metrics["policy/approxkl_avg"] == pytest.approx(0.5 * shift.square().mean().item(), abs=1e-10)
    assert metrics["policy/entropy_avg"] == pytest.approx(NOISE[4][real].abs().mean().item(), abs=1e-10)
    clean, entropy = on_junk(rollout, policy, 0.0)
    expected_gradient, expected = updated(clean, policy)
    expected |= rollout_metrics(clean, shaped_as(clean), entropy, 0.1 * clean.kl, 0.1, parts().advantage, EOS)
    assert metrics == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert (gradient - expected_gradient).abs().max() < 1e-10


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_the_weight_of_a_token_does_not_depend_on_its_micro_batch(aggregation):
    """A mean within each micro-batch, then over micro-batches: tokens of short rows weigh more (transformers and the
    trainers built on it, until they counted the tokens of the whole batch)."""
    policy, rollout = small_policy(), random_rollout(5)
    assert len(set(rollout.mask.sum(dim=1).tolist())) > 2
    e, _ = on_junk(rollout, policy, NAN)
    whole, metrics = updated(e, policy, aggregation, 5)
    assert whole.norm() > 0.05
    for micro in (1, 2):
        gradient, split = updated(e, policy, aggregation, micro)
        assert (gradient - whole).abs().max() < 1e-10
        assert split == pytest.approx(metrics, abs=1e-10)


# ---- rewards -----------------------------------------------------------------------------------------------


def score(*functions):
    models = RewardModels([(f.__name__, 1.0, built("reward", f)) for f in functions])
    given = {"prompts": ["p"] * 3, "completions": ["a"] * 3, "prompt_ids": [[1]] * 3, "completion_ids": [[3, 2]] * 3}
    return models.call(RewardBatch(**given, columns={}, trainer_state=TrainerState(0, 1, 0.0)))


@pytest.mark.parametrize("given", [[1.0], (1.0,), torch.ones(1), torch.tensor(1.0), 1.0, [[1.0, 1.0]]])
def test_one_reward_for_three_responses_is_refused(given):
    """TRL (6533) spread a list of length 1 over the whole batch."""

    def lonely(completions):
        return given

    with pytest.raises(PluginError) as caught:
        score(lonely)
    refusal(caught.value, 5, "reward 'lonely'", "expected 3 values")


def fine(completions):
    return [0.5] * len(completions)


async def fine_later(completions):
    return fine(completions)


def broken(completions):
    raise KeyError("answer")


async def broken_later(completions):
    return broken(completions)


@pytest.mark.parametrize("functions", [(broken,), (fine, broken), (broken_later,), (fine_later, broken_later, fine)])
def test_what_a_reward_raises_reaches_the_caller_under_its_name(functions):
    """verl and OpenRLHF caught it and went on with a score of 0."""
    name = next(f.__name__ for f in functions if f not in (fine, fine_later))
    with pytest.raises(PluginError) as caught:
        score(*functions)
    refusal(caught.value, 5, f"reward '{name}' of plugin 'tests'", "raised KeyError ('answer')")
    assert isinstance(caught.value.__cause__, KeyError)


# ---- resuming ----------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_with_the_adapted_kl_coefficient(tmp_path):
    """OpenRLHF and verl began again with the coefficient of the configuration."""
    steered = {"target": 1e-9, "horizon": 80}
    state = state_of(small_policy(), beta=0.05, reference=Reference(small_policy(40)), **steered)
    iteration(state)  # KL far above the target: beta (1 + 0.2 x 16 / 80) = 1.04 beta
    path = checkpoint.save_checkpoint(tmp_path, state, {}, {})
    resumed = state_of(small_policy(7), beta=0.05, reference=state.reference, **steered)
    checkpoint.load_checkpoint(path, resumed)
    assert resumed.controller.beta == pytest.approx(0.052, rel=1e-12)
    assert resumed.controller.beta == state.controller.beta
    _, metrics = iteration(resumed)
    assert metrics["kl/coef"] == pytest.approx(0.052, rel=1e-12)  # and the rewards are made with it
    assert metrics["objective/non_score_reward"] == pytest.approx(-0.052 * metrics["objective/kl"], rel=1e-9)
