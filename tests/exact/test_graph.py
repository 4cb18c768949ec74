"""The lab against enumeration written out here: every response of a problem, one at a time, in plain Python."""

import itertools
import math

import pytest
import torch

from minirlhf.exact import graph as exact
from minirlhf.exact.problems import LADDER, Problem, independent_optimum, problems
from tests.helpers import seeded

SMALL = [p for p in LADDER if p.name != "independent"]
NAMES = [p.name for p in SMALL]


def softmax(logits):
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def written_out(problem: Problem, prompt: int, policy):
    """[(response, probability under policy(prompt, prefix) -> probabilities, log-probability of the reference)]"""
    found = []
    for tokens in itertools.product(range(problem.vocabulary), repeat=problem.horizon):
        end = problem.horizon
        if problem.ends and problem.vocabulary - 1 in tokens:
            end = tokens.index(problem.vocabulary - 1) + 1
            if any(tokens[end:]):  # each response once: what comes behind EOS is all 0
                continue
        chance, log_ref = 1.0, 0.0
        for t in range(end):
            chance *= policy(prompt, tokens[:t])[tokens[t]]
            log_ref += math.log(softmax(problem.reference(prompt, tokens[:t]))[tokens[t]])
        found.append((tokens[:end], chance, log_ref))
    return found


def reference(problem):
    return lambda prompt, prefix: softmax(problem.reference(prompt, prefix))


def some_policy(graph):
    """A policy off the reference, as a table and as a function of a prefix."""
    log_pi = (graph.log_ref + torch.randn(graph.log_ref.shape, generator=seeded(3), dtype=torch.float64)).log_softmax(1)
    rows = {(int(p), prefix): log_pi[s] for s, (p, prefix) in enumerate(zip(graph.prompt, graph.prefixes, strict=True))}
    return log_pi, lambda prompt, prefix: rows[prompt, prefix].exp().tolist()


@pytest.mark.parametrize("problem", SMALL, ids=NAMES)
def test_objective_divergence_and_values_are_those_of_every_response_written_out(problem):
    graph = exact.build_graph(problem)
    log_pi, policy = some_policy(graph)
    objective, divergence = 0.0, 0.0
    for prompt in range(problem.prompts):
        rows = written_out(problem, prompt, policy)
        assert sum(chance for _, chance, _ in rows) == pytest.approx(1, abs=1e-12)
        kl = sum(chance * (math.log(chance) - log_ref) for _, chance, log_ref in rows)
        divergence += kl / problem.prompts
        objective += (sum(c * problem.reward(prompt, y) for y, c, _ in rows) - problem.beta * kl) / problem.prompts
    assert float(exact.objective(graph, log_pi, problem.beta)) == pytest.approx(objective, abs=1e-10)
    assert float(exact.divergence(graph, log_pi)) == pytest.approx(divergence, abs=1e-10)


@pytest.mark.parametrize("problem", SMALL, ids=NAMES)
def test_the_optimum_is_the_reference_tilted_by_the_reward(problem):
    """pi*(y) is proportional to ref(y) exp(r(y)/beta), J* = beta log sum of it; tree and merged graph agree."""
    graph, merged, beta = exact.build_graph(problem), exact.build_graph(problem, merged=True), problem.beta
    log_best, values = exact.optimum(graph, beta)
    best = 0.0
    for prompt in range(problem.prompts):
        rows = written_out(problem, prompt, reference(problem))
        z = sum(math.exp(log_ref + problem.reward(prompt, y) / beta) for y, _, log_ref in rows)
        best += beta * math.log(z) / problem.prompts
        found = exact.responses(graph)
        chances = found.taken(log_best).sum(dim=1).exp()
        by_response = {
            (int(p), tuple(ids[keep].tolist())): float(c)
            for p, ids, keep, c in zip(found.prompt, found.ids, found.mask, chances, strict=True)
        }
        for y, _, log_ref in rows:
            tilted = math.exp(log_ref + problem.reward(prompt, y) / beta) / z
            assert by_response[prompt, y] == pytest.approx(tilted, abs=1e-10)
    start = graph.layers[0]
    assert float(values[start].mean()) == pytest.approx(best, abs=1e-10)
    assert float(exact.optimum(merged, beta)[1][merged.layers[0]].mean()) == pytest.approx(best, abs=1e-10)
    assert float(exact.objective(graph, log_best, beta)) == pytest.approx(best, abs=1e-10)
    assert len(merged) <= len(graph)


@pytest.mark.parametrize("problem", SMALL, ids=NAMES)
def test_the_gap_is_beta_times_the_kl_to_the_optimum(problem):
    graph, beta = exact.build_graph(problem), problem.beta
    log_pi, _ = some_policy(graph)
    log_best, values = exact.optimum(graph, beta)
    to_best = exact.expected(graph, log_pi, log_pi - log_best)[graph.layers[0]].mean()
    gap = values[graph.layers[0]].mean() - exact.objective(graph, log_pi, beta)
    assert float(gap) == pytest.approx(float(beta * to_best), abs=1e-10)


@pytest.mark.parametrize("problem", SMALL, ids=NAMES)
def test_the_residual_is_one_number_only_at_the_optimum(problem):
    graph, beta = exact.build_graph(problem), problem.beta
    found = exact.responses(graph)

    def residual(log_pi):
        log_ratio = (found.taken(log_pi) - found.taken(graph.log_ref)).sum(dim=1)
        left = found.reward - beta * log_ratio
        return max(float(left[found.prompt == p].std()) for p in range(problem.prompts))

    assert residual(exact.optimum(graph, beta)[0]) < 1e-10
    assert residual(some_policy(graph)[0]) > 0.1


def test_without_a_kl_the_optimum_is_the_best_score():
    """nonadditive at beta 0: 222 scores 3 + 0.7 - 0.5 = 3.2, 202 and 212 score 2.7: one response is best."""
    problem = problems()["nonadditive"]
    for merged in (False, True):
        graph = exact.build_graph(problem, merged=merged)
        log_best, values = exact.optimum(graph, 0.0)
        assert float(values[0]) == pytest.approx(3.2)
        assert log_best[0].exp().tolist() == [0, 0, 1]
    flat = exact.build_graph(problems()["constant"])
    assert exact.optimum(flat, 0.0)[0][0].exp().tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("prefix", "best", "value"),
    [
        ((), "ab", 2),  # ab and an end, and bab and an end
        ((0,), "ab", 2),
        ((1,), "a", 2),
        ((0, 0), "b", 2),
        ((0, 1), "ab.", 2),  # abab, abb and an end, an end
        ((1, 0), "b", 2),
        ((1, 1), "a", 1),  # bbab is cut: no end
        ((0, 0, 1), ".", 2),
    ],
)
def test_without_a_kl_tokens_of_equal_worth_are_taken_alike_in_every_state(prefix, best, value):
    """variable: 1 for each b behind an a, 1 more for an end (.) behind one of them; cut at four tokens."""
    graph = exact.build_graph(problems()["variable"])
    log_best, values = exact.optimum(graph, 0.0)
    state = graph.prefixes.index(prefix)
    assert log_best[state].exp().tolist() == pytest.approx([(token in best) / len(best) for token in "ab."])
    assert float(values[state]) == value


def test_the_graph_of_a_tree_by_hand():
    """nonadditive: 1 + 3 + 9 states; a third token ends the response, which is where its whole score comes."""
    problem = problems()["nonadditive"]
    graph = exact.build_graph(problem)
    assert graph.child.tolist() == [[3 * s + 1, 3 * s + 2, 3 * s + 3] for s in range(4)] + [[-1] * 3] * 9
    assert graph.gain[:4].tolist() == [[0.0] * 3] * 4
    assert graph.gain[graph.prefixes.index((2, 0))].tolist() == pytest.approx([1 - 0.5, 1, 2 + 0.7])
    for beta in (0.0, 0.5):
        log_best, values = exact.optimum(graph, beta)
        assert (log_best.shape, values.shape) == ((13, 3), (13,))
    assert exact.expected(graph, graph.log_ref, graph.gain).shape == (13,)


def test_the_gradient_is_that_of_finite_differences():
    graph = exact.build_graph(problems()["variable"])
    theta = some_policy(graph)[0].clone().requires_grad_()
    exact.objective(graph, theta.log_softmax(dim=-1), 0.5).backward()
    for at in [(0, 0), (3, 1), (14, 2)]:
        sides = []
        for step in (1e-5, -1e-5):
            moved = theta.detach().clone()
            moved[at] += step
            sides.append(float(exact.objective(graph, moved.log_softmax(dim=-1), 0.5)))
        assert float(theta.grad[at]) == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-8)


def test_the_values_of_states_are_what_follows_them_and_visits_add_up():
    problem = problems()["variable"]
    graph = exact.build_graph(problem)
    log_pi, policy = some_policy(graph)
    values = exact.expected(graph, log_pi, exact.shaped(graph, log_pi, 0.5))
    visits = exact.occupancy(graph, log_pi)
    for state, prefix in enumerate(graph.prefixes):
        rows = [row for row in written_out(problem, 0, policy) if row[0][: len(prefix)] == prefix]
        chance = sum(c for _, c, _ in rows)
        assert float(visits[state]) == pytest.approx(chance, abs=1e-12)
        seen = math.prod(policy(0, prefix[:t])[prefix[t]] for t in range(len(prefix)))
        log_ref = sum(math.log(reference(problem)(0, prefix[:t])[prefix[t]]) for t in range(len(prefix)))
        ahead = sum(
            c * (problem.reward(0, y) - 0.5 * (math.log(c / seen) - (ref - log_ref))) for y, c, ref in rows
        )  # the KL of what comes after the prefix
        assert float(values[state]) == pytest.approx(ahead / chance, abs=1e-10)


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.2, 0.1])
def test_dynamic_programming_gives_the_closed_form_of_independent_tokens(beta):
    """16 tokens, one worth 1: J* = 20 beta log((15 + e^(1/beta)) / 16); p = e^(1/beta) / (15 + e^(1/beta))."""
    problem = problems()["independent"]
    graph = exact.build_graph(problem, merged=True)
    log_best, values = exact.optimum(graph, beta)
    p = math.exp(1 / beta) / (15 + math.exp(1 / beta))
    kl = 20 * (p * math.log(16 * p) + (1 - p) * math.log(16 * (1 - p) / 15))
    best = 20 * beta * math.log((15 + math.exp(1 / beta)) / 16)
    assert float(values[0]) == pytest.approx(best, abs=1e-9)
    assert float(exact.divergence(graph, log_best)) == pytest.approx(kl, abs=1e-9)
    assert independent_optimum(problem, beta) == pytest.approx((best, 20 * p, kl), abs=1e-9)
    with pytest.raises(ValueError, match="too many"):
        exact.build_graph(problem)


def test_more_reference_samples_come_nearer_to_the_optimum_from_below():
    """beta log-mean-exp over N samples of the reference: E of it rises in N towards J*."""
    problem = problems()["nonadditive"]
    graph = exact.build_graph(problem)
    chance = exact.responses(graph).probability(graph.log_ref, 1)
    picks = chance.multinomial(64 * 4000, replacement=True, generator=seeded()).view(4000, 64)
    tilted = (exact.responses(graph).reward / problem.beta)[picks]
    means = [float((problem.beta * (tilted[:, :n].logsumexp(1) - math.log(n))).mean()) for n in (1, 4, 16, 64)]
    best = float(exact.optimum(graph, problem.beta)[1][0])
    # 4,000 rewards of standard deviation 0.90: three and a half standard errors
    assert means[0] == pytest.approx(float((chance * exact.responses(graph).reward).sum()), abs=0.05)
    assert means == sorted(means)
    assert best - 0.05 < means[-1] < best


def test_the_share_that_was_achieved():
    graph = exact.build_graph(problems()["nonadditive"])
    beta = 0.5
    best = float(exact.optimum(graph, beta)[1][0])
    start = float(exact.objective(graph, graph.log_ref, beta))
    assert exact.achieved(graph, start, beta) == 0
    assert exact.achieved(graph, best, beta) == pytest.approx(1)
    assert exact.achieved(graph, start + 0.25 * (best - start), beta) == pytest.approx(0.25)
    flat = exact.build_graph(problems()["constant"])
    assert exact.achieved(flat, 1.0, beta) is None
    assert float(exact.optimum(flat, beta)[1][0]) == pytest.approx(1)


def test_context_is_needed_a_policy_of_the_token_before_reaches_088():
    """The best policy that sees only the previous token, by ascent on the exact J from three starts."""
    graph, beta = exact.build_graph(problems()["nonadditive"]), 0.5
    previous = torch.tensor([prefix[-1] + 1 if prefix else 0 for prefix in graph.prefixes])
    best = -math.inf
    for seed in range(3):
        theta = torch.randn(4, 3, generator=seeded(seed), dtype=torch.float64).requires_grad_()
        optimizer = torch.optim.LBFGS([theta], max_iter=200, line_search_fn="strong_wolfe")

        def loss(theta=theta, optimizer=optimizer):
            optimizer.zero_grad()
            value = -exact.objective(graph, theta[previous].log_softmax(dim=-1), beta)
            value.backward()
            return value

        optimizer.step(loss)
        best = max(best, float(exact.objective(graph, theta.detach()[previous].log_softmax(dim=-1), beta)))
    assert exact.achieved(graph, best, beta) == pytest.approx(0.88, abs=0.005)  # the two digits that the manual names


def test_the_nonadditive_problem_is_what_it_says():
    problem = problems()["nonadditive"]
    assert problem.reward(0, (2, 2, 2)) == pytest.approx(3 + 0.7 - 0.5)
    assert problem.reward(0, (2, 0, 2)) == pytest.approx(2 + 0.7)
    assert problem.reward(0, (0, 0, 1)) == pytest.approx(-0.5)
    assert problem.reward(0, (1, 2, 0)) == pytest.approx(1)
    assert [problem.reference(0, prefix) for prefix in ((), (0,), (2, 1), (1, 2))] == [
        (0.2, 0.0, -0.3), (0.0, 0.5, -0.5), (0.3, -0.2, 0.1), (-0.4, 0.6, 0.2),
    ]  # fmt: skip


def test_text_and_tokens_of_a_response():
    problem = problems()["variable"]
    assert problem.letters == "ab"
    assert problem.response("") == (2,)
    assert problem.response("ab") == (0, 1, 2)
    assert problem.response("abba") == (0, 1, 1, 0)  # cut at the horizon
    assert problem.reward(0, (0, 1, 2)) == 2
    assert problem.reward(0, (0, 1, 0, 1)) == 2
    with pytest.raises(ValueError, match="substring"):
        problem.response("z")


def test_prompts_weigh_alike_in_visits_and_probabilities():
    """Three prompts: each is begun with 1/3, and over all responses the probabilities add up to 1."""
    problem = problems()["prompts"]
    graph = exact.build_graph(problem)
    log_pi, _ = some_policy(graph)
    visits = exact.occupancy(graph, log_pi)
    assert visits[graph.layers[0]].tolist() == pytest.approx([1 / 3] * 3)
    assert [float(visits[layer].sum()) for layer in graph.layers] == pytest.approx([1.0] * 3)
    assert float(exact.responses(graph).probability(log_pi, 3).sum()) == pytest.approx(1.0)


def test_a_response_is_terminated_by_an_eos_and_only_where_there_is_one():
    """variable: token 2 is its EOS; in nonadditive it is a token like the others."""
    ends = exact.responses(exact.build_graph(problems()["variable"]))
    lasts = ends.ids.gather(1, ends.mask.sum(dim=1, keepdim=True) - 1).squeeze(1)
    assert ends.terminated.tolist() == (lasts == 2).tolist()
    assert set(ends.terminated.tolist()) == {True, False}
    assert not exact.responses(exact.build_graph(problems()["nonadditive"])).terminated.any()


def test_a_tree_is_enumerated_up_to_the_limit_and_no_further(monkeypatch):
    """nonadditive has 1 + 3 + 9 prefixes that are not over."""
    monkeypatch.setattr(exact, "MOST_STATES", 13)
    assert len(exact.build_graph(problems()["nonadditive"])) == 13
    monkeypatch.setattr(exact, "MOST_STATES", 12)
    with pytest.raises(ValueError, match="more than 12 prefixes"):
        exact.build_graph(problems()["nonadditive"])
