"""Checks of a reward: for every check, a reward that fails exactly that one."""

import itertools

import pytest

from minirlhf.errors import UsageError
from minirlhf.testing import assert_sound, check
from minirlhf.text.corpus import Prompt
from tests.helpers import built

counter = itertools.count()


def short(completions):
    return [1.0] * (len(completions) - 1)


def impatient(completions):
    return [1 / len(text) for text in completions]


def counting(completions):
    return [float(next(counter)) for _ in completions]


def ranked(completions):
    return [float(i) for i, _ in enumerate(completions)]


def relative(completions):
    most = max(len(text) for text in completions)
    return [len(text) / max(1, most) for text in completions]


def wanting(completions, wanted):
    return [float(len(w)) for w in wanted]


def rotating(completion_ids):
    """Reward 1 for one token: its place depends on the row, the sum does not."""
    return [[float(t == row % len(ids)) for t in range(len(ids))] for row, ids in enumerate(completion_ids)]


def rollout_wide(rollout):
    return [float(rollout.response_ids.shape[1])] * len(rollout)


def picky(completions, *, unit: str = ""):
    """An option is empty, but the fault has nothing to do with it: it counts as a fault of the reward."""
    return [float(max(map(ord, text))) for text in completions]


REWARDS = {
    short: {"contract"},
    impatient: {"contract"},  # fails on an empty text
    counting: {"repeatable", "order", "batch"},
    ranked: {"order", "batch"},
    relative: {"batch"},
    wanting: {"row without columns"},
    rotating: {"order", "batch"},
    rollout_wide: {"batch"},  # R is smaller where a short text stands alone
    picky: {"contract"},
}


@pytest.mark.parametrize("function", REWARDS, ids=lambda f: f.__name__)
def test_a_reward_that_fails(function):
    prompts = [Prompt("a", {"wanted": "tea"})]
    with pytest.raises(AssertionError) as error:
        assert_sound("reward", function, prompts=prompts)
    failed = {line.partition(":")[0] for line in str(error.value).splitlines()}
    assert failed == REWARDS[function]


def test_a_reward_that_fails_is_told_for_which_text():
    with pytest.raises(AssertionError, match=r"contract: for the completion '': .* raised ZeroDivisionError"):
        assert_sound("reward", impatient)


def test_the_rollout_is_that_of_the_texts_and_the_ids():
    seen = []

    def looking(prompts, completions, prompt_ids, completion_ids, rollout):
        assert (rollout.prompts, rollout.completions) == (tuple(prompts), tuple(completions))
        for i, ids in enumerate(completion_ids):
            assert rollout.response_ids[i][rollout.mask[i]].tolist() == ids
            assert rollout.prompt_ids[i][rollout.prompt_mask[i]].tolist() == prompt_ids[i]
            assert bytes(b - 3 for b in ids if b > 2) == completions[i].encode()[:64]
            assert bool(rollout.terminated[i]) == (ids[-1] == 2) == (len(completions[i].encode()) < 64)
        seen.append(len(completions))
        return [[float(t) for t in range(len(ids))] for ids in completion_ids]

    assert_sound("reward", looking)
    assert set(seen) == {8, 1}


def test_a_missing_column_is_named_and_is_no_fault_of_the_plugin():
    with pytest.raises(UsageError, match="asks for wanted"):
        assert_sound("reward", wanting)
    with pytest.raises(UsageError, match=r"asks for completion \(did you mean 'completions'"):
        assert_sound("reward", lambda completion: [0.0 for _ in completion])


def test_a_slow_reward_is_reported_with_the_time_of_an_iteration(monkeypatch):
    clock = iter(range(100))  # every reading of the clock is a second after the one before
    monkeypatch.setattr("minirlhf.authoring.reward.perf_counter", lambda: next(clock))
    *_, time = check(built("reward", lambda completions: [0.0] * len(completions)))
    assert time.found == "125.00 ms a completion: 16 s for an iteration of 128"  # 1 s for eight texts
