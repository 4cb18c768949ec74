"""Problems whose optimum can be computed: a vocabulary, a horizon, a reference, a reward, and beta.

A problem is two functions of a prefix (the tokens so far): the logits of the reference there, and the reward of the
tokens so far. Only the reward of a whole response counts; because it is defined on prefixes as well, it can be spread
over the tokens as increments. `state` is the part of a prefix that the two functions need: prefixes with the same state
are one state, which makes large problems computable (graph.py).

Tokens are 0 .. V-1. With `ends` the last one is EOS; a response of `horizon` tokens without it is cut there. As text,
token 0 is the letter a, and so on; EOS is the end. LADDER lists the problems, each with what it shows.
"""

import math
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

Prefix = tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """Vocabulary V (EOS included), horizon T in tokens, beta in score units per nat, and three functions.

    prompts: number of prompts.
    reference(prompt, prefix) -> V logits; reward(prompt, prefix) -> score units; state(prompt, prefix) -> the part of a
    prefix that decides both from there on.
    """

    name: str
    about: str
    vocabulary: int
    horizon: int
    reference: Callable[[int, Prefix], Sequence[float]]
    reward: Callable[[int, Prefix], float]
    state: Callable[[int, Prefix], Hashable] = lambda prompt, prefix: prefix
    beta: float = 0.5
    prompts: int = 1
    ends: bool = False

    def over(self, prefix: Prefix) -> bool:
        """True if a prefix is a whole response."""
        return len(prefix) == self.horizon or (self.ends and bool(prefix) and prefix[-1] == self.vocabulary - 1)

    @property
    def letters(self) -> str:
        """Text of the tokens, without EOS."""
        return "".join(chr(ord("a") + token) for token in range(self.vocabulary - self.ends))

    def prompt_text(self, prompt: int) -> str:
        """Text of a prompt: empty if there is only one, else a capital letter."""
        return "" if self.prompts == 1 else chr(ord("A") + prompt)

    def response(self, text: str) -> Prefix:
        """Tokens of a completion; one shorter than the horizon ended by EOS. ValueError for another letter."""
        tokens = tuple(self.letters.index(letter) for letter in text)
        return (*tokens, self.vocabulary - 1) if self.ends and len(tokens) < self.horizon else tokens


def bigram(table: Sequence[Sequence[float]], start: Sequence[float]) -> Callable[[int, Prefix], Sequence[float]]:
    """Reference that sees the previous token: logits table[previous], and `start` at the beginning."""
    return lambda prompt, prefix: table[prefix[-1]] if prefix else start


def uniform(vocabulary: int) -> Callable[[int, Prefix], Sequence[float]]:
    """Reference to which all tokens are alike."""
    return lambda prompt, prefix: [0.0] * vocabulary


# The reference of the problem that context is needed for (and of some simpler ones).
TABLE = ((0.0, 0.5, -0.5), (0.3, -0.2, 0.1), (-0.4, 0.6, 0.2))
START = (0.2, 0.0, -0.3)


def neighbours_equal(prefix: Prefix) -> bool:
    """True if some token equals the one before it."""
    return any(a == b for a, b in pairwise(prefix))


def patterns(count: float, same_ends: float, repeat: float, token: int) -> Callable[[int, Prefix], float]:
    """count x (how often `token` occurs) + same_ends x [first = last] + repeat x [two neighbours equal].

    The last two need the whole response: no sum over tokens gives them.
    """

    def reward(prompt: int, prefix: Prefix) -> float:
        if not prefix:
            return 0.0
        return count * prefix.count(token) + same_ends * (prefix[0] == prefix[-1]) + repeat * neighbours_equal(prefix)

    return reward


def ends_and_repeats(prompt: int, prefix: Prefix) -> Hashable:
    """State for `patterns` and a bigram reference: first token, last token, True if two neighbours were equal."""
    return (prefix[:1], prefix[-1:], neighbours_equal(prefix))


def sibling(seed: int) -> Problem:
    """Problem of the form of `nonadditive` with random logits, weights and counted token."""
    draw = random.Random(f"sibling/{seed}")
    table = [[draw.gauss(0, 0.5) for _ in range(3)] for _ in range(4)]
    weights = (draw.uniform(0.5, 1.0), draw.choice([-1, 1]) * draw.uniform(0.5, 1.0), -draw.uniform(0.5, 1.0))
    return Problem(
        f"nonadditive-{seed}",
        "random reference and weights of the same kind of reward as nonadditive",
        vocabulary=3,
        horizon=3,
        reference=bigram(table[:3], table[3]),
        reward=patterns(*weights, token=draw.randrange(3)),
        state=ends_and_repeats,
    )


def _variable_reward(prompt: int, prefix: Prefix) -> float:
    """1 for each b with an a before it, and 1 more if the response ended by itself with at least one of them."""
    pairs = sum(a == 0 and b == 1 for a, b in pairwise(prefix))
    return pairs + float(bool(prefix) and prefix[-1] == 2 and pairs > 0)


def _has_a(prompt: int, prefix: Prefix) -> Hashable:
    return (prefix[-1:], 0 in prefix)


def _variable_state(prompt: int, prefix: Prefix) -> Hashable:
    return (prefix[-1:], any(a == 0 and b == 1 for a, b in pairwise(prefix)))


LADDER: tuple[Problem, ...] = (
    Problem(
        "constant",
        "every response scores 1: the reference is the optimum, and any move away from it loses",
        vocabulary=3,
        horizon=3,
        reference=bigram(TABLE, START),
        reward=lambda prompt, prefix: float(bool(prefix)),
        state=lambda prompt, prefix: prefix[-1:],
    ),
    Problem(
        "bandit",
        "one token: no later reward, no state but the prompt",
        vocabulary=4,
        horizon=1,
        reference=lambda prompt, prefix: (0.5, 0.0, -0.5, 0.0),
        reward=lambda prompt, prefix: (0.0, 1.0, 0.5, -1.0)[prefix[0]] if prefix else 0.0,
    ),
    Problem(
        "independent",
        "20 tokens that have nothing to do with each other, one of 16 rewarded: the optimum has a closed form",
        vocabulary=16,
        horizon=20,
        reference=uniform(16),
        reward=lambda prompt, prefix: float(prefix.count(0)),
        state=lambda prompt, prefix: (),
    ),
    Problem(
        "additive",
        "a reward a token under a bigram reference: what to write now depends on what it makes likely next",
        vocabulary=3,
        horizon=5,
        reference=bigram(TABLE, START),
        reward=lambda prompt, prefix: float(prefix.count(2)),
        state=lambda prompt, prefix: prefix[-1:],
    ),
    Problem(
        "delayed",
        "only the first of six tokens counts and the score comes at the end: all others should stay at 0.5",
        vocabulary=2,
        horizon=6,
        reference=uniform(2),
        reward=lambda prompt, prefix: float(prefix[:1] == (1,)),
        state=lambda prompt, prefix: prefix[:1],
    ),
    Problem(
        "prompts",
        "three prompts, each wants another token",
        vocabulary=3,
        horizon=3,
        reference=bigram(TABLE, START),
        reward=lambda prompt, prefix: 0.7 * prefix.count(prompt),
        state=lambda prompt, prefix: prefix[-1:],
        prompts=3,
    ),
    Problem(
        "variable",
        "responses end by EOS: pairs of a and b score, and ending pays once there is one",
        vocabulary=3,
        horizon=4,
        reference=bigram(((0.0, 0.4, -0.3), (0.3, -0.2, 0.1), (0.0, 0.0, 0.0)), (0.2, 0.0, -0.6)),
        reward=_variable_reward,
        state=_variable_state,
        ends=True,
    ),
    Problem(
        "capped",
        "an a anywhere scores 1, and responses end by EOS or are cut: what a cut one is worth is known before the cut",
        vocabulary=3,
        horizon=6,
        reference=bigram(((0.0, 0.4, -0.3), (0.3, -0.2, 0.1), (0.0, 0.0, 0.0)), (0.2, 0.0, -0.6)),
        reward=lambda prompt, prefix: float(0 in prefix),
        state=_has_a,
        ends=True,
    ),
    Problem(
        "nonadditive",
        "a reward of the whole response: the best policy that sees only the token before reaches F = 0.88",
        vocabulary=3,
        horizon=3,
        reference=bigram(TABLE, START),
        reward=patterns(1.0, 0.7, -0.5, token=2),
        state=ends_and_repeats,
    ),
    *(sibling(seed) for seed in (1, 2, 3)),
)


@cache
def problems() -> dict[str, Problem]:
    """Ladder of problems by name."""
    return {problem.name: problem for problem in LADDER}


def independent_optimum(problem: Problem, beta: float) -> tuple[float, float, float]:
    """(J*, reward, KL in nats) at the optimum of a problem with one state, whose tokens are independent: closed form.

    J* = T beta log sum_v ref(v) exp(r(v)/beta), with r(v) the reward that one token v adds.
    """
    logits = problem.reference(0, ())
    total = math.log(sum(math.exp(x) for x in logits))
    ref = [math.exp(x - total) for x in logits]
    gains = [problem.reward(0, (v,)) for v in range(problem.vocabulary)]
    z = sum(p * math.exp(r / beta) for p, r in zip(ref, gains, strict=True))
    best = [p * math.exp(r / beta) / z for p, r in zip(ref, gains, strict=True)]
    reward = sum(p * r for p, r in zip(best, gains, strict=True))
    kl = sum(p * math.log(p / q) for p, q in zip(best, ref, strict=True))
    return problem.horizon * beta * math.log(z), problem.horizon * reward, problem.horizon * kl
