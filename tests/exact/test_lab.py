"""A transformer on a problem: what it may sample, the table as its reference, the fit, and F found two ways."""

import math
from dataclasses import replace

import pytest
import torch

from minirlhf.errors import DivergedError
from minirlhf.exact import graph as exact
from minirlhf.exact import lab
from minirlhf.exact.problems import Problem, problems, uniform
from minirlhf.models.generate import generate
from minirlhf.models.policy import Policy
from minirlhf.models.transformer import Transformer, TransformerConfig
from minirlhf.streams import generator
from minirlhf.text.tokenizer import MIN_VOCAB
from tests.helpers import seeded

TOKENIZER = lab.problem_tokenizer()
SIZES = TransformerConfig(
    vocab_size=TOKENIZER.vocab_size,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=32,
)


def policy_of(problem: Problem, seed=0, temperature=1.0, scale=3.0) -> Policy:
    trunk = Transformer(SIZES).initialise(seeded(seed))
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.mul_(scale)  # 3: far from uniform
    return Policy(trunk, lab.problem_sampler(problem, TOKENIZER, temperature))


def sampled(policy, problem, rows=64):
    batch = lab.prompt_batch(problem, TOKENIZER, [i % problem.prompts for i in range(rows)], torch.device("cpu"))
    return generate(policy, batch, TOKENIZER, max_new_tokens=problem.horizon, generator=seeded(1))


@pytest.mark.parametrize("name", ["nonadditive", "variable", "prompts"])
def test_only_the_problems_tokens_are_sampled_and_text_says_which(name):
    problem = problems()[name]
    policy = policy_of(problem, scale=0.5)
    rollout = sampled(policy, problem)
    allowed = set(lab.token_ids(problem, TOKENIZER))
    for ids, text in zip(rollout.completion_id_lists, rollout.completions, strict=True):
        assert set(ids) <= allowed
        tokens = [lab.token_ids(problem, TOKENIZER).index(i) for i in ids]
        assert problem.response(text) == tuple(tokens)
        assert problem.over(tuple(tokens))
    lengths = {len(ids) for ids in rollout.completion_id_lists}
    assert lengths == ({1, 2, 3, 4} if problem.ends else {3})
    assert bool(rollout.terminated.any()) == problem.ends


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", ["variable", "prompts"])
def test_the_table_of_a_transformer_is_its_distribution_after_each_prefix(name, temperature):
    """Row by row, one forward pass over prompt + prefix without padding."""
    problem = problems()[name]
    policy, graph = policy_of(problem, temperature=temperature), exact.build_graph(problem)
    table = lab.tabulate(policy, graph, TOKENIZER)
    ids = lab.token_ids(problem, TOKENIZER)
    for state, prefix in enumerate(graph.prefixes):
        text = problem.prompt_text(int(graph.prompt[state]))
        row = [TOKENIZER.bos_id, *TOKENIZER.encode(text), *(ids[v] for v in prefix)]
        with torch.no_grad():
            logits = policy.logits(policy.model(torch.tensor([row]))[0, -1])[ids] / temperature
        assert torch.allclose(table[state].float(), logits.log_softmax(0), atol=1e-5)


@pytest.mark.parametrize("name", ["nonadditive", "variable", "prompts"])
def test_the_reference_of_a_run_is_the_table_itself(name):
    problem = problems()[name]
    policy = policy_of(problem, scale=0.5)
    rollout, reference = sampled(policy, problem), lab.TableReference(policy, problem, TOKENIZER)
    assert bool(rollout.response_mask.all()) is not problem.ends  # there is padding where responses can end
    out, ids = reference.forward_pass(rollout), lab.token_ids(problem, TOKENIZER)
    dist, entropies = out.log_dist(slice(None)), out.entropy()
    for row, taken in enumerate(rollout.completion_id_lists):
        prefix, prompt = (), rollout.columns["exact_prompt"][row]
        for t, identifier in enumerate(taken):
            logits = torch.tensor(problem.reference(prompt, prefix))
            right = logits.log_softmax(0)
            assert torch.allclose(dist[row, t, ids], right)
            others = [i for i in range(TOKENIZER.vocab_size) if i not in ids]
            assert bool(dist[row, t, others].isneginf().all())
            token = ids.index(identifier)
            assert out.logprobs[row, t].item() == pytest.approx(right[token].item(), abs=1e-6)
            assert entropies[row, t].item() == pytest.approx(-float((right.exp() * right).sum()), abs=1e-6)
            prefix = (*prefix, token)
    assert bool((out.logprobs[~rollout.response_mask] == 0).all())
    assert bool((entropies[~rollout.response_mask] == 0).all())
    assert bool(dist.isnan().any()) is False
    assert reference.unchanged()


@pytest.mark.parametrize("name", ["nonadditive", "variable", "prompts", "independent", "delayed"])
def test_the_fit_ends_within_a_hundred_thousandth_of_a_nat(name):
    problem = problems()[name]
    trunk = Transformer(SIZES).initialise(seeded())
    facts = lab.fit_to_problem(trunk, problem, TOKENIZER, 1.0, 0)
    assert facts["kl"] < lab.FIT_KL
    assert all(p.grad is None for p in trunk.parameters())
    policy = Policy(trunk, lab.problem_sampler(problem, TOKENIZER, 1.0))
    if name == "independent":
        for row in lab._own(policy, problem, TOKENIZER, 5)[:1]:
            logprobs = policy.forward_pass(row).logprobs
            # 1e-5 nats over 20 tokens: log-probs that are d off have a KL of d^2 / 2, so d = sqrt(2 x 5e-7) = 0.001
            assert torch.allclose(logprobs, torch.full_like(logprobs, -math.log(16)), atol=1e-3)
        return
    graph = exact.build_graph(problem)
    table = lab.tabulate(policy, graph, TOKENIZER)
    assert float(exact.divergence(graph, table)) < lab.FIT_KL
    # Pinsker: 1e-5 nats bound the distance in every state by sqrt(1e-5 / 2) = 0.002, divided by the root of how often
    # it is visited.
    assert torch.allclose(table.exp(), graph.log_ref.exp(), atol=5e-3)


def test_a_fit_that_does_not_get_there_says_so(monkeypatch):
    monkeypatch.setattr(lab, "FIT_STEPS", 1)
    with pytest.raises(DivergedError, match=r"ended at a KL of .*: additive; try a larger model"):
        lab.fit_to_problem(Transformer(SIZES).initialise(seeded()), problems()["additive"], TOKENIZER, 1.0, 0)


@pytest.mark.parametrize("name", ["variable", "prompts", "additive"])
def test_the_share_by_enumeration_is_the_one_estimated_from_samples(name, monkeypatch):
    problem = problems()[name]
    policy = policy_of(problem)
    whole = lab.optimality(policy, problem, TOKENIZER, 0.3)
    monkeypatch.setattr(lab, "enumerable", lambda problem: False)
    estimate = lab.optimality(policy, problem, TOKENIZER, 0.3)
    assert estimate["best"] == whole["best"]
    for key in ("reward", "kl", "objective"):
        # 4,096 responses, and a standard deviation of at most 1: four standard errors
        assert estimate[key] == pytest.approx(whole[key], abs=0.06)
        assert estimate[key] != whole[key]


def test_a_policy_that_is_the_optimum_has_a_share_of_one():
    """The problem whose reward is beta (log pi - log ref) + c of this very policy has it as its optimum."""
    names = problems()
    policy, shape = policy_of(names["nonadditive"]), names["nonadditive"]
    graph = exact.build_graph(shape)
    table = dict(zip(graph.prefixes, lab.tabulate(policy, graph, TOKENIZER).tolist(), strict=True))

    def reward(prompt, prefix):
        return 0.5 * sum(table[prefix[:t]][prefix[t]] + math.log(3) for t in range(len(prefix))) + 1

    problem = Problem("own", "", vocabulary=3, horizon=3, reference=uniform(3), reward=reward)
    found = lab.optimality(policy, problem, TOKENIZER, 0.5)
    assert found["optimality"] == pytest.approx(1, abs=1e-6)
    assert found["objective"] == pytest.approx(1, abs=1e-6)  # J* = beta log E_ref[pi/ref] + c = c


def test_a_changed_table_is_another_base():
    one = problems()["nonadditive"]
    assert lab.fingerprint(one) == lab.fingerprint(problems()["nonadditive"])
    assert lab.fingerprint(one) != lab.fingerprint(problems()["nonadditive-1"])


def test_each_letter_is_one_token():
    tokenizer = lab.problem_tokenizer()
    assert tokenizer.vocab_size == MIN_VOCAB
    ids = tokenizer.encode("abcpABC")
    assert len(ids) == len(set(ids)) == 7


def test_a_fingerprint_is_of_the_states_so_that_long_problems_have_one():
    """independent: 16^20 responses and 20 states. Another reference, and another end, are other problems."""
    one = problems()["independent"]
    found = lab.fingerprint(one)
    assert found == lab.fingerprint(replace(one, name="other", about="the same", beta=9.0))
    assert found != lab.fingerprint(replace(one, reference=lambda prompt, prefix: [0.0] * 15 + [1.0]))
    assert found != lab.fingerprint(replace(one, horizon=19))
    assert found != lab.fingerprint(replace(one, ends=True))


# ---- prefixes, and which problems can be tabulated -----------------------------------------------------------


def test_a_prefix_is_a_response_with_one_token_more():
    """a, c b and nothing, each with one more: lengths 2, 3 and 1. Nothing but the mask says which are there."""
    problem = problems()["nonadditive"]
    a, b, c = lab.token_ids(problem, TOKENIZER)
    rollout = lab._prefixes(problem, TOKENIZER, [(0,), (2, 1), ()], [0, 0, 0], torch.device("cpu"))
    assert rollout.response_ids.tolist() == [[a, a, a], [c, b, a], [a, a, a]]
    assert rollout.mask.tolist() == [[True, True, False], [True, True, True], [True, False, False]]
    assert torch.equal(rollout.mask, rollout.response_mask)
    assert rollout.terminated.tolist() == [False] * 3
    one = lab._prefixes(problems()["bandit"], TOKENIZER, [()], [0], torch.device("cpu"))
    assert (one.mask.tolist(), one.terminated.tolist()) == ([[True]], [False])


def test_a_problem_is_enumerable_up_to_a_quarter_of_the_states(monkeypatch):
    """Two prompts with 3 x 3 prefixes of the longest length: 18, a quarter of 72."""
    problem = replace(problems()["nonadditive"], prompts=2)
    for limit, expected in [(71, False), (72, True), (75, True)]:
        monkeypatch.setattr(lab, "MOST_STATES", limit)
        assert lab.enumerable(problem) is expected


def test_prefixes_that_are_too_many_are_drawn_and_the_prompts_take_turns(monkeypatch):
    """variable has no EOS before its last token: three letters a or b, and one token more. Equal seeds, equal draws."""
    monkeypatch.setattr(lab, "enumerable", lambda problem: False)
    monkeypatch.setattr(lab, "FIT_ROWS", 40)
    problem = replace(problems()["variable"], prompts=3)
    ids = lab.token_ids(problem, TOKENIZER)
    trunk = policy_of(problem).model
    rollouts = [lab._longest_prefixes(problem, TOKENIZER, trunk, seeded(seed)) for seed in (1, 1, 2)]
    drawn = [rollout.response_ids[:, :3].tolist() for rollout in rollouts]
    assert drawn[0] == drawn[1] != drawn[2]
    assert {identifier for row in drawn[0] for identifier in row} == set(ids[:2])
    assert len({tuple(row) for row in drawn[0]}) == 8  # by 40 draws of 8 texts
    assert rollouts[0].mask.shape == (40, 4)
    assert bool(rollouts[0].mask.all())
    assert rollouts[0].columns["exact_prompt"] == tuple(i % 3 for i in range(40))


# ---- estimates -----------------------------------------------------------------------------------------------


def test_the_value_of_a_response_is_the_sum_of_its_states_expectations():
    """In each state visited: sum over v of pi(v) (what v adds to the score), and KL(pi, ref) there; none behind EOS."""
    problem = problems()["variable"]
    policy = policy_of(problem, scale=0.5)
    rollout, reference = sampled(policy, problem, 32), lab.TableReference(policy, problem, TOKENIZER)
    tree, ids = exact.build_graph(problem), lab.token_ids(problem, TOKENIZER)
    table = dict(zip(tree.prefixes, lab.tabulate(policy, tree, TOKENIZER), strict=True))
    objective, gain, kl = reference.value(policy, rollout, 0.3)
    for row, taken in enumerate(rollout.completion_id_lists):
        tokens = tuple(ids.index(i) for i in taken)
        added, paid = 0.0, 0.0
        for t in range(len(tokens)):
            prefix, log_pi = tokens[:t], table[tokens[:t]]
            log_ref = torch.tensor(problem.reference(0, prefix), dtype=torch.float64).log_softmax(0)
            now = problem.reward(0, prefix)
            added += sum(float(log_pi[v].exp()) * (problem.reward(0, (*prefix, v)) - now) for v in range(3))
            paid += float((log_pi.exp() * (log_pi - log_ref)).sum())
        assert gain[row].item() == pytest.approx(added, abs=1e-5)
        assert kl[row].item() == pytest.approx(paid, abs=1e-5)
        assert objective[row].item() == pytest.approx(added - 0.3 * paid, abs=1e-5)
    assert {len(taken) for taken in rollout.completion_id_lists} == {1, 2, 3, 4}


def test_own_responses_come_from_the_stream_exact_of_the_seed_part_by_part(monkeypatch):
    monkeypatch.setattr(lab, "ROWS", 6)
    monkeypatch.setattr(lab, "ESTIMATE_ROWS", 12)
    problem = problems()["prompts"]
    policy = policy_of(problem, scale=0.5)
    batch = lab.prompt_batch(problem, TOKENIZER, [0, 1, 2, 0, 1, 2], torch.device("cpu"))
    found = [rollout.response_ids for rollout in lab._own(policy, problem, TOKENIZER, 7)]
    for part in (0, 1):
        draw = generator(7, "exact", part)
        right = generate(policy, batch, TOKENIZER, max_new_tokens=3, generator=draw).response_ids
        assert torch.equal(found[part], right)
    assert len(found) == 2
    assert not torch.equal(*found)


def test_the_objective_of_the_reference_is_its_expected_score():
    """20 tokens, each worth 1 with chance 1/16: 20/16, without a tree of 16^20. In delayed one of two scores."""
    assert lab.reference_objective(problems()["independent"]) == pytest.approx(20 / 16)
    assert lab.reference_objective(problems()["delayed"]) == pytest.approx(1 / 2)


def test_a_state_may_mean_something_else_for_another_prompt():
    """Prompt 0 forgets what was written, prompt 1 remembers the last token, and its reference follows it."""
    one = Problem(
        "one",
        "",
        vocabulary=2,
        horizon=2,
        reference=lambda prompt, prefix: [0.0, 1.0] if prompt and prefix == (1,) else [0.0, 0.0],
        reward=lambda prompt, prefix: float(len(prefix)),
        state=lambda prompt, prefix: prefix[-1:] if prompt else (),
        prompts=2,
    )
    assert exact.build_graph(one, merged=True).child[:2].tolist() == [[2, 2], [3, 4]]
    policy = policy_of(one, scale=0.5)
    rollout = sampled(policy, one, 16)
    states = lab.TableReference(policy, one, TOKENIZER).states(rollout)
    ids = lab.token_ids(one, TOKENIZER)
    for row, taken in enumerate(rollout.completion_id_lists):
        prompt = rollout.columns["exact_prompt"][row]
        assert states[row].tolist() == [prompt, 3 + ids.index(taken[0]) if prompt else 2]


# ---- how the fit goes ----------------------------------------------------------------------------------------


def test_the_fit_is_at_the_temperature_of_the_run():
    problem = problems()["bandit"]
    trunk = Transformer(SIZES).initialise(seeded())
    lab.fit_to_problem(trunk, problem, TOKENIZER, 0.5, 0)
    graph, policy = exact.build_graph(problem), Policy(trunk, lab.problem_sampler(problem, TOKENIZER, 0.5))
    # as far from the reference as a fit may end: Pinsker bounds it by sqrt(1e-5 / 2) = 0.002 in one state
    assert torch.allclose(lab.tabulate(policy, graph, TOKENIZER).exp(), graph.log_ref.exp(), atol=5e-3)


def test_the_fit_goes_on_until_half_of_the_kl_it_promises(monkeypatch):
    """It begins at uniform, whose KL to the reference k is log-sum-exp - mean of the logits - log 4."""
    problem = problems()["bandit"]
    logits = problem.reference(0, ())
    start = math.log(sum(math.exp(x) for x in logits)) - sum(logits) / 4 - math.log(4)
    for limit, steps in [(2.1 * start, 0), (1.9 * start, 1)]:
        monkeypatch.setattr(lab, "FIT_KL", limit)
        facts = lab.fit_to_problem(Transformer(SIZES).initialise(seeded()), problem, TOKENIZER, 1.0, 0)
        assert facts["steps"] == steps
        assert steps or facts["kl"] == pytest.approx(start, rel=1e-4)


def test_where_there_are_too_many_prefixes_the_seed_draws_what_is_fitted_to_and_what_it_is_measured_on(monkeypatch):
    """With a FIT_KL that all reach, the KL that is returned is that of uniform, on the first part of its responses."""
    monkeypatch.setattr(lab, "enumerable", lambda problem: False)
    monkeypatch.setattr(lab, "FIT_KL", 100.0)
    monkeypatch.setattr(lab, "ROWS", 8)
    monkeypatch.setattr(lab, "ESTIMATE_ROWS", 8)
    problem, draws, drawn = problems()["prompts"], lab._longest_prefixes, []

    def watched(problem, tokenizer, trunk, random):
        drawn.append(random.get_state())
        return draws(problem, tokenizer, trunk, random)

    monkeypatch.setattr(lab, "_longest_prefixes", watched)
    found = {}
    for seed in (1, 2):
        trunk = Transformer(SIZES).initialise(seeded())
        found[seed] = lab.fit_to_problem(trunk, problem, TOKENIZER, 1.0, seed)["kl"]
        policy = Policy(trunk, lab.problem_sampler(problem, TOKENIZER, 1.0))
        (own,) = lab._own(policy, problem, TOKENIZER, seed)
        kl = lab.TableReference(policy, problem, TOKENIZER).value(policy, own, 1.0)[2]
        assert found[seed] == pytest.approx(kl.mean().item())
    assert found[1] != found[2]
    assert [state.tolist() for state in drawn] == [generator(seed, "fit", 0).get_state().tolist() for seed in (1, 2)]


def test_a_step_of_the_fit_is_ten_iterations(monkeypatch):
    """What FIT_STEPS counts; each iteration goes as far as a line search finds good."""
    made = []

    class Idle(torch.optim.LBFGS):
        def step(self, closure):
            made.extend(self.param_groups)

    monkeypatch.setattr(torch.optim, "LBFGS", Idle)
    monkeypatch.setattr(lab, "FIT_STEPS", 1)
    with pytest.raises(DivergedError):
        lab.fit_to_problem(Transformer(SIZES).initialise(seeded()), problems()["bandit"], TOKENIZER, 1.0, 0)
    assert [(group["max_iter"], group["line_search_fn"]) for group in made] == [(10, "strong_wolfe")]
