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
    policy = policy_of(problem)
    rollout, reference = sampled(policy, problem), lab.TableReference(policy, problem, TOKENIZER)
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
