"""Problems: what the parts of a reference and of a reward give, by hand, and the siblings, which are drawn."""

import math

import pytest

from minirlhf.exact import graph as exact
from minirlhf.exact.problems import Problem, bigram, independent_optimum, patterns, problems, sibling, uniform


def test_a_bigram_reference_sees_the_last_token_and_nothing_else():
    reference = bigram([[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0])
    assert [reference(0, prefix) for prefix in [(), (0,), (1,), (0, 0, 1), (1, 1, 0)]] == [
        [5.0, 6.0],
        [1.0, 2.0],
        [3.0, 4.0],
        [3.0, 4.0],
        [1.0, 2.0],
    ]
    assert len(set(uniform(3)(0, (1, 2)))) == 1
    assert len(uniform(3)(0, ())) == 3


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ((), 0.0),  # nothing is written, so nothing is earned
        ((1,), 2.0 + 0.7),  # first and last are one token
        ((0, 1), 2.0),
        ((1, 0, 1), 4.0 + 0.7),
        ((0, 1, 1), 4.0 - 0.5),
        ((0, 2, 2, 0), 0.7 - 0.5),
    ],
)
def test_a_reward_of_patterns_by_hand(prefix, expected):
    """2 for each token 1, 0.7 if the ends are equal, -0.5 if two neighbours are."""
    assert patterns(2.0, 0.7, -0.5, token=1)(0, prefix) == pytest.approx(expected)


def test_a_sibling_is_drawn_by_its_seed_from_the_ranges_it_names():
    """Its reward gives its weights away: one token that is not counted earns same_ends, one that is count more, and two
    of them in a row repeat more than that."""
    logits, counts, ends, repeats, counted = [], [], [], [], []
    for seed in range(60):
        problem = sibling(seed)
        assert (problem.name, problem.vocabulary, problem.horizon) == (f"nonadditive-{seed}", 3, 3)
        logits += [x for prefix in [(), (0,), (1,), (2,)] for x in problem.reference(0, prefix)]
        single = [problem.reward(0, (token,)) for token in range(3)]
        same_ends = sorted(single)[0]
        assert sorted(single)[1] == same_ends
        token = single.index(max(single))
        ends.append(same_ends)
        counted.append(token)
        counts.append(max(single) - same_ends)
        other = (token + 1) % 3
        repeats.append(problem.reward(0, (other, other)) - same_ends)
    assert len(logits) == 60 * 4 * 3
    mean = sum(logits) / len(logits)
    # 720 draws with a standard deviation of 0.5: standard errors of 0.019 and 0.013, of which these are 5 and 4.
    assert mean == pytest.approx(0.0, abs=0.1)
    assert math.sqrt(sum((x - mean) ** 2 for x in logits) / len(logits)) == pytest.approx(0.5, abs=0.05)
    for drawn in (counts, [abs(x) for x in ends], [-x for x in repeats]):
        assert 0.5 <= min(drawn) < 0.55
        assert 0.95 < max(drawn) <= 1.0
    assert {x > 0 for x in ends} == {True, False}
    assert set(counted) == {0, 1, 2}
    again, listed = sibling(2), problems()["nonadditive-2"]
    assert again.reference(0, (1,)) == listed.reference(0, (1,)) != sibling(3).reference(0, (1,))
    assert again.reward(0, (0, 1, 1)) == listed.reward(0, (0, 1, 1))


def test_the_state_of_a_sibling_is_its_ends_and_whether_neighbours_were_equal():
    state = sibling(7).state
    assert state(0, (0, 1, 1, 2)) == state(0, (0, 0, 2))
    assert state(0, (0, 1, 1, 2)) not in (state(0, (0, 1, 2)), state(0, (1, 1, 2)), state(0, (0, 1, 1)))


def test_the_states_of_variable_are_the_last_token_and_whether_a_pair_was_written():
    """By depth: (); a, b; a, b, b with a pair; those and a with a pair. EOS is the end."""
    graph = exact.build_graph(problems()["variable"], merged=True)
    assert [layer.stop - layer.start for layer in graph.layers] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [((0, 0, 0, 0), 0), ((1, 1, 2), 0), ((0, 1), 1), ((0, 1, 2), 2), ((0, 1, 0, 1), 2), ((1, 0, 0, 1), 1)],
)
def test_the_reward_of_variable_by_hand(prefix, expected):
    """1 for each b behind an a; 1 more for an end (2) behind at least one of them."""
    assert problems()["variable"].reward(0, prefix) == expected


def test_the_states_of_capped_are_the_last_token_and_whether_an_a_was_written():
    """By depth: (); a, b; a, b with an a before it, b without: no more of them however long the response."""
    graph = exact.build_graph(problems()["capped"], merged=True)
    assert [layer.stop - layer.start for layer in graph.layers] == [1, 2, 3, 3, 3, 3]


def test_the_text_of_a_prompt_is_a_capital_letter_where_there_are_several():
    assert [problems()["prompts"].prompt_text(prompt) for prompt in range(3)] == ["A", "B", "C"]
    assert problems()["bandit"].prompt_text(0) == ""


def test_the_closed_form_asks_for_the_first_prompt_and_the_beginning():
    """Chances 1/4 and 3/4, the second token worth beta log 5: z = 1/4 + 15/4 = 4, and 1/16 and 15/16 are best.
    Three tokens: J* = 3 x 2 log 4, reward 3 x 15/16 x 2 log 5, KL = 3 (log 5 x 15/16 - log 4)."""
    problem = Problem(
        "one",
        "",
        vocabulary=2,
        horizon=3,
        reference=lambda prompt, prefix: [[0.0, math.log(3)]][prompt] if len(prefix) == 0 else [],
        reward=lambda prompt, prefix: [2 * math.log(5)][prompt] * prefix.count(1),
    )
    expected = (6 * math.log(4), 3 * 15 / 16 * 2 * math.log(5), 3 * (15 / 16 * math.log(5) - math.log(4)))
    assert independent_optimum(problem, 2.0) == pytest.approx(expected)
