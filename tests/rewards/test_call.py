"""From texts to scores: the sum, TRL's signature, async functions, columns, copies, and who is blamed."""

import asyncio
import gc
import math
import time
import warnings
from dataclasses import replace

import pytest
import torch

from minirlhf.components.registry import load_plugins
from minirlhf.components.signature import read_component
from minirlhf.config.schema import Config, PPOConfig, RunConfig
from minirlhf.errors import PluginError
from minirlhf.rewards.batch import RewardBatch, TrainerState
from minirlhf.rewards.call import RewardModels, Scale, ScoreTable, call_rewards
from tests.helpers import Letters, random_rollout
from tests.plugins.files import built, refusal, reward_plugin, write

STATE = TrainerState(global_step=3, max_steps=10, epoch=0.3)
BATCH = {
    "prompts": ["p0", "p1", "p2"],
    "completions": ["one", "one two", "one two three"],
    "prompt_ids": [[5], [6, 7], [8]],
    "completion_ids": [[3, 2], [3, 4, 2], [3, 4, 5, 2]],
    "columns": {"answer": ["a", None, "c"], "style": ["x", "y", "z"]},
    "trainer_state": STATE,
}


def models(*given):
    """(label, weight, function) triples, or functions with weight 1."""
    triples = [g if isinstance(g, tuple) else (f"r{i}", 1.0, g) for i, g in enumerate(given)]
    return RewardModels([(label, weight, built("reward", fn)) for label, weight, fn in triples])


def score(*given, **changes):
    return models(*given).call(RewardBatch(**(BATCH | changes)))


# ---- the sum -----------------------------------------------------------------------------------------------


def test_the_total_is_the_weighted_sum_and_none_leaves_it():
    result = score(("a", 2.0, lambda completions: [1.0, None, None]), ("b", -0.5, lambda completions: [4, 2, None]))
    assert result.total == [2 * 1 - 0.5 * 4, -0.5 * 2, None]
    assert result.by_label == {"a": [1.0, None, None], "b": [4.0, 2.0, None]}
    assert result.token_rewards is None


@pytest.mark.parametrize(
    ("weight", "function", "index"),
    [
        (2.0, lambda completions: [1.0, 3e38, 0.0], 1),  # 6e38 is infinite in float32
        (1.0, lambda completions: [0.0, 0.0, -3e38], 2),  # a float32, and its square is not
        (1e37, lambda completions: [0.5, 0.5, 0.5], 0),
        (1.0, lambda completion_ids: [None, [3e38, -3e38, 0.0], None], 1),  # the sum is 0
    ],
)
def test_a_score_too_large_for_the_loop_is_the_plugins_fault_and_names_the_weight(weight, function, index):
    said = rf"at index {index} that is too large to learn from \(weight .* at most 1e\+15\).*rewards\.big\.weight"
    with pytest.raises(PluginError, match=said):
        score(("big", weight, function))


def test_the_largest_score_is_no_fault():
    assert score(("big", 1.0, lambda completions: [1e15, -1e15, 0.0])).total == [1e15, -1e15, 0.0]


def test_a_table_of_scores_as_tensors_by_hand():
    """The second response has no score: 0 that is not valid, in no mean, and counted. One has a token reward."""
    table = ScoreTable(
        total=[1.5, None, 0.0],
        by_label={"a": [1.5, None, 0.5], "b": [None, None, None]},
        token_rewards=[[0.5, 1.0], [0.0], [0.0, 0.0, 0.0]],
        metrics={"reward/a/x": 2.0},
    )
    found = table.tensors(random_rollout(3))
    assert (found.total.tolist(), found.valid.tolist()) == ([1.5, 0.0, 0.0], [True, False, True])
    assert found.token_rewards.tolist() == [[0.5, 1.0, 0, 0, 0, 0], [0.0] * 6, [0.0] * 6]
    assert math.isnan(found.metrics.pop("reward/b"))
    assert found.metrics == {
        "reward/a": 1.0,
        "reward/a/x": 2.0,
        "count/token_rewards": 1.0,
        "count/unscored": 1.0,
    }
    assert "count/token_rewards" not in replace(table, token_rewards=None).tensors(random_rollout(3)).metrics


def test_a_large_score_that_is_cut_is_used():
    rewards = shaped(lambda completions: [3e38, 1.0, 0.0], clip=5.0)
    assert rewards.call(RewardBatch(**BATCH)).total == [5.0, 1.0, 0.0]


def test_token_rewards_are_summed_weighted_and_placed():
    result = score(
        ("tokens", 0.5, lambda completion_ids: [[1.0, 3.0], [1.0, 0.0, 1.0], None]),
        ("whole", 1.0, lambda completions: [10.0, 20.0, 30.0]),
    )
    assert result.total == [0.5 * 4 + 10, 0.5 * 2 + 20, 30.0]
    assert result.by_label["tokens"] == [4.0, 2.0, None]
    assert result.token_rewards == [[0.5, 1.5], [0.5, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]]
    assert result.tensors(random_rollout(3)).metrics["count/token_rewards"] == 2
    assert "count/token_rewards" not in score(lambda completions: [1.0] * 3).tensors(random_rollout(3)).metrics


def shaped(fn, weight=1.0, **shape):
    return RewardModels([("a", weight, built("reward", fn))], {"a": Scale(**shape)})


def test_a_score_is_normalised_then_cut_then_weighed():
    """(4 - 1) / 2 = 1.5, cut to 1; (0 - 1) / 2 = -0.5; both times 3. What is logged is the score as it is."""
    rewards = shaped(lambda completions: [4.0, 0.0, None], 3.0, mean=1.0, std=2.0, clip=1.0)
    result = rewards.call(RewardBatch(**BATCH))
    assert result.total == [3.0, -1.5, None]
    assert result.by_label == {"a": [4.0, 0.0, None]}
    metrics = result.tensors(random_rollout(3)).metrics
    assert metrics["reward/a"] == 2.0  # the mean of those that were given
    nobody = shaped(lambda completions: [None] * 3).call(RewardBatch(**BATCH)).tensors(random_rollout(3))
    assert math.isnan(nobody.metrics["reward/a"])
    assert shaped(lambda completions: [4.0, -9.0, 0.5], clip=2).call(RewardBatch(**BATCH)).total == [2.0, -2.0, 0.5]


def test_token_rewards_keep_their_places_in_units_of_std_and_the_rest_of_the_total_has_none():
    """Sums 4, 2, 6 become (4 - 2) / 2 = 1, 0, 2, cut to 1.5; the tokens are divided by 2, and the last by 2 / 1.5, too:
    their places stay, and a cut does not become a fine of -1.5 for the last token."""
    tokens = [[1.0, 3.0], [1.0, 0.0, 1.0], [0.0, 0.0, 6.0, 0.0]]
    result = shaped(lambda completion_ids: tokens, mean=2.0, std=2.0, clip=1.5).call(RewardBatch(**BATCH))
    assert result.total == [1.0, 0.0, 1.5]
    assert result.token_rewards == [[0.5, 1.5], [0.5, 0.0, 0.5], [0.0, 0.0, 2.25, 0.0]]


def test_fitting_takes_mean_and_unbiased_std_of_what_is_there_for_rewards_that_want_it():
    """1, 3, 8: mean 4, variance (9 + 1 + 16) / 2 = 13."""
    rewards = RewardModels(
        [(label, 1.0, built("reward", lambda completions: [0.0] * 3)) for label in "abc"],
        {"a": Scale(normalize=True), "b": Scale(), "c": Scale(normalize=True, clip=2.0)},
    )
    assert rewards.normalized == ["a", "c"]
    rewards.fit({"a": [1.0, None, 3.0, 8.0], "b": [9.0, 7.0], "c": [5.0, 5.0]})
    assert (rewards.scales["a"].mean, rewards.scales["a"].std) == (4.0, pytest.approx(13**0.5))
    assert rewards.scales["b"] == Scale()
    assert rewards.scales["c"] == Scale(True, 2.0, 5.0, 1.0)  # all the same: centred only
    rewards.fit({"a": [1e-9, 3e-9], "c": [10000.1, 10000.101]})  # a scale of its own; equal but for rounding
    assert rewards.scales["a"].std == pytest.approx(2**0.5 * 1e-9)
    assert rewards.scales["c"].std == 1.0
    rewards.fit({"a": [None], "c": []})
    assert (rewards.scales["a"].mean, rewards.scales["a"].std) == (0.0, 1.0)
    rewards.fit({"a": [7.0, None], "c": [2e7]})  # one number has no spread
    assert (rewards.scales["a"].mean, rewards.scales["a"].std) == (7.0, 1.0)
    assert (rewards.scales["c"].mean, rewards.scales["c"].std) == (2e7, 1.0)


def test_no_responses_give_no_scores():
    empty = {name: [] for name in ("prompts", "completions", "prompt_ids", "completion_ids")}
    assert score(lambda completions: [], **empty, columns={}).total == []


# ---- inputs and columns ------------------------------------------------------------------------------------


def test_a_function_gets_what_it_names_and_columns_takes_the_rest():
    got = {}

    def named(prompts, answer, style="plain", other="own", **rest):
        got.update(locals())
        return [0.0] * 3

    score(named, rollout=None)
    assert got["prompts"] == ["p0", "p1", "p2"]
    assert got["answer"] == ["a", None, "c"]
    assert got["style"] == ["x", "y", "z"]  # a column wins over the parameter's own default
    assert got["other"] == "own"
    assert set(got["rest"]) == {
        *("completions", "prompt_ids", "completion_ids", "rollout"),
        *("trainer_state", "log_metric", "log_extra"),
    }
    assert got["rest"]["trainer_state"] == STATE


def test_columns_are_checked_at_the_start():
    rewards = models(lambda completions: 0, ("mine", 1.0, lambda completions, anwser: 0))
    with pytest.raises(PluginError) as error:
        rewards.check_columns({"answer", "style"})
    refusal(error.value, 5, "(label 'mine')", "unknown input 'anwser' (did you mean 'answer'?)", "(answer, style)")
    models(lambda answer, style, **rest: 0).check_columns({"answer", "style"})


def test_a_misspelt_input_finds_the_nearest_name():
    with pytest.raises(PluginError) as error:
        models(lambda completion: 0).check_columns(set())
    refusal(error.value, 5, "unknown input 'completion' (did you mean 'completions'", "prompt files have (none)")


def test_an_option_is_never_overwritten_by_a_column():
    def fn(completions, *, answer: str = "mine", **columns):
        assert "answer" not in columns
        return [float(answer == "mine")] * 3

    assert score(fn).total == [1.0, 1.0, 1.0]


def test_inputs_are_copies():
    rollout = replace(random_rollout(rows=3), columns={"facts": ({"x": [1]}, {"x": [2]}, {"x": [3]})})
    lists = {"completion_ids": rollout.completion_id_lists, "prompt_ids": rollout.prompt_id_lists}
    columns = {"facts": [{"x": [1]}, {"x": [2]}, {"x": [3]}]}

    def vandal(prompts, completions, prompt_ids, completion_ids, facts, rollout):
        prompts.clear()
        completions[0] = "changed"
        prompt_ids[0].append(99)
        completion_ids[0][0] = 99
        facts[0]["x"].append(99)
        rollout.response_ids.zero_()
        rollout.mask.logical_not_()
        rollout.columns["facts"][0]["x"].append(99)
        return [0.0] * 3

    def honest(prompts, completions, prompt_ids, completion_ids, facts, rollout):
        tensors = (rollout.response_ids.tolist(), rollout.mask.tolist(), rollout.columns)
        seen.append(repr((prompts, completions, prompt_ids, completion_ids, facts, tensors)))
        return [0.0] * 3

    seen = []
    ids = rollout.response_ids.tolist()
    score(honest, vandal, honest, rollout=rollout, columns=columns, **lists)
    assert seen[0] == seen[1]
    assert rollout.response_ids.tolist() == ids
    assert BATCH["prompts"] == ["p0", "p1", "p2"]


# ---- TRL's signature, sync and async -----------------------------------------------------------------------


def trl_reward(prompts, completions, completion_ids, answer=None, log_extra=None, log_metric=None, **kwargs):
    log_metric("mean_length", sum(map(len, completion_ids)) / len(completion_ids))
    log_extra("answer", [a or "-" for a in answer])
    assert kwargs["trainer_state"].global_step == 3
    return [float(len(text)) for text in completions]


async def trl_reward_async(prompts, completions, completion_ids, **kwargs):
    await asyncio.sleep(0)
    return trl_reward(prompts, completions, completion_ids, **kwargs)


@pytest.mark.parametrize("fn", [trl_reward, trl_reward_async])
def test_a_reward_with_trls_signature_runs_unchanged(fn):
    result = score(("trl", 1.0, fn))
    assert result.total == [3.0, 7.0, 13.0]
    assert result.metrics == {"reward/trl/mean_length": 3.0}
    assert result.extras == {"reward/trl/answer": ["a", "-", "c"]}


def test_a_tensor_is_logged_as_its_numbers():
    def fn(completions, log_extra):
        log_extra("half", torch.tensor([0.5, 1.0, 1.5]))
        return [0.0] * 3

    (values,) = score(fn).extras.values()
    assert [type(value) for value in values] == [float] * 3
    assert values == [0.5, 1.0, 1.5]


def test_what_is_logged_more_than_once_is_averaged():
    def fn(completions, log_metric):
        log_metric("x", 1)
        log_metric("x", torch.tensor(4.0))
        return [0.0] * 3

    assert score(("a", 1.0, fn), ("b", 1.0, fn)).metrics == {"reward/a/x": 2.5, "reward/b/x": 2.5}


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (lambda metric, extra: metric("x", float("nan")), "expected a finite number, got nan"),
        (lambda metric, extra: metric("x", "high"), "got 'high' (str)"),
        (lambda metric, extra: metric(3, 1.0), "must be a string"),
        (lambda metric, extra: extra("x", [1]), "expected 3 values to log as 'x', got 1"),
        (lambda metric, extra: extra("x", 5), "not iterable"),
    ],
)
def test_a_wrong_log_is_an_error_of_the_plugin(log, said):
    def fn(completions, log_metric, log_extra):
        log(log_metric, log_extra)
        return [0.0] * 3

    with pytest.raises(PluginError) as error:
        score(fn)
    refusal(error.value, 5, "(label 'r0')", said, __file__)


def test_async_rewards_wait_together():
    arrived = []

    def waits(name):
        async def fn(completions, **kwargs):
            arrived.append(name)
            while len(arrived) < 2:  # would never end if they were awaited one after the other
                await asyncio.sleep(0)
            return [1.0] * 3

        return fn

    started = time.perf_counter()
    assert score(waits("a"), lambda completions: [1.0] * 3, waits("b")).total == [3.0, 3.0, 3.0]
    assert time.perf_counter() - started < 5


def test_of_two_async_faults_the_first_in_order_is_told_and_not_the_first_in_time():
    ready = []

    async def slow(completions, **kwargs):
        while not ready:
            await asyncio.sleep(0)
        raise ValueError("slow")

    async def quick(completions, **kwargs):
        ready.append(True)
        raise ValueError("quick")

    with pytest.raises(PluginError, match="slow"):
        score(("a", 1.0, slow), ("b", 1.0, quick))


def test_a_running_loop_does_not_break_async_rewards():
    async def notebook():
        return score(trl_reward_async).total

    assert asyncio.run(notebook()) == [3.0, 7.0, 13.0]


@pytest.mark.parametrize("raised", [ValueError("no server"), SystemExit(2), asyncio.CancelledError("stop")])
def test_what_an_async_reward_raises_is_named(raised):
    async def broken(completions, **kwargs):
        await asyncio.sleep(0)
        raise raised

    with pytest.raises(PluginError) as error:
        score(trl_reward_async, ("bad", 1.0, broken), trl_reward)
    refusal(error.value, 5, "(label 'bad')", type(raised).__name__, __file__)


def test_an_interrupt_during_async_rewards_passes():
    async def interrupted(completions, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(trl_reward_async, interrupted)


def test_a_reward_that_an_interrupt_ends_is_not_blamed(caplog):
    """asyncio logs what a task raises while it is being ended, unless that is the end itself."""

    async def waits(completions, **kwargs):
        await asyncio.sleep(30)

    async def interrupted(completions, **kwargs):
        await asyncio.sleep(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(waits, interrupted)
    assert caplog.messages == []


def test_a_fault_leaves_no_coroutine_behind():
    async def waiting(completions, **kwargs):
        return [0.0] * 3

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(PluginError):
            score(waiting, lambda completions: 1 / 0)
        gc.collect()
    assert [str(w.message) for w in warned if "never awaited" in str(w.message)] == []


def test_prints_of_async_rewards_go_to_stderr(capsys):
    async def loud(completions, **kwargs):
        await asyncio.sleep(0)
        print("loud")
        return [0.0] * 3

    score(loud, loud)
    print("after")
    assert capsys.readouterr() == ("after\n", "loud\nloud\n")


# ---- modules -----------------------------------------------------------------------------------------------


def test_a_part_of_a_batch_has_the_inputs_of_its_rows():
    """17 rows are a part of 16 and one of 1; here without a rollout."""
    seen = []

    class Reads(torch.nn.Module):
        def forward(self, prompts, completions, prompt_ids, completion_ids, answer, trainer_state):
            seen.append((prompts, completions, prompt_ids, completion_ids, answer, trainer_state))
            return torch.zeros(len(prompts))

    rows = range(17)
    given = {
        "prompts": [f"p{i}" for i in rows],
        "completions": [f"c{i}" for i in rows],
        "prompt_ids": [[i] for i in rows],
        "completion_ids": [[i, i] for i in rows],
    }
    sizes = []

    def fn(completions):
        sizes.append(len(completions))
        return [0.0] * len(completions)

    score(("module", 1.0, Reads), fn, **given, columns={"answer": [str(i) for i in rows]})
    assert [len(part[0]) for part in seen] == [16, 1]
    assert sizes == [17]  # a function is asked once, for all of them
    assert seen[1] == (["p16"], ["c16"], [[16]], [[16, 16]], ["16"], STATE)
    assert [row for part in seen for row in part[2]] == given["prompt_ids"]


def test_a_function_may_take_gradients():
    seen = []

    def fn(completions):
        seen.append(torch.is_inference_mode_enabled())
        return [0.0] * 3

    score(fn)
    assert seen == [False]


def test_a_module_scores_in_micro_batches_without_gradients():
    sizes = []

    class Scorer(torch.nn.Module):
        def __init__(self, *, width: int = 1):
            super().__init__()
            self.linear = torch.nn.Linear(width, 1, bias=False)
            torch.nn.init.constant_(self.linear.weight, 2.0)

        def forward(self, rollout, completions, tag, log_extra, log_metric):
            assert torch.is_inference_mode_enabled()
            assert len(completions) == len(tag) == len(rollout)
            sizes.append(len(completions))
            log_extra("tag", tag)
            log_metric("rows", len(tag))
            return self.linear(rollout.response_ids[:, :1].float()).squeeze(1)

    n = 35
    rollout = random_rollout(rows=n)
    result = RewardModels([("m", 1.0, read_component("reward", "m", "p", "p.py", Scorer).build({}))]).call(
        RewardBatch(
            prompts=list(rollout.prompts),
            completions=list(rollout.completions),
            prompt_ids=rollout.prompt_id_lists,
            completion_ids=rollout.completion_id_lists,
            columns={"tag": list(range(n))},
            trainer_state=STATE,
            rollout=rollout,
        )
    )
    assert sizes == [16, 16, 3]
    assert result.total == [2.0 * ids[0] for ids in rollout.response_ids.tolist()]
    assert result.extras["reward/m/tag"] == list(range(n))
    assert result.metrics["reward/m/rows"] == pytest.approx(n / 3)


# ---- the right plugin of three -----------------------------------------------------------------------------

BAD_BODIES = {
    "a wrong length": ("return [0.0] * 2", "got 2: index 2 is missing"),
    "nan": ("return [0.0, float('nan'), 0.0]", "at index 1 (expected a finite number or None, got nan"),
    "strings": ("return ['good'] * 3", "at index 0 (expected a finite number or None, got 'good' (str))"),
    "an exception": ("return [1 / 0]", "raised ZeroDivisionError (division by zero)"),
    "an exit": ("raise SystemExit", "raised SystemExit"),
    "a recursion": ("return middle(completions)", "raised RecursionError"),
    "nothing": ("pass", "got None"),
    "the wrong shape": ("return [[0.0]] * 3", "at index 0 (expected a number, or 2 numbers for its 2 tokens"),
}


@pytest.mark.parametrize("fault", BAD_BODIES)
def test_a_fault_names_the_right_plugin_of_three(tmp_path, fault):
    body, said = BAD_BODIES[fault]
    files = [
        reward_plugin(tmp_path, "first"),
        reward_plugin(tmp_path, "middle", body),
        reward_plugin(tmp_path, "last"),
    ]
    registry = load_plugins(files, entry_points=False)
    rewards = RewardModels(
        [(f"my-{name}", 1.0, registry.find("reward", name).build({})) for name in ("first", "middle", "last")]
    )
    with pytest.raises(PluginError) as error:
        rewards.call(RewardBatch(**BATCH))
    text = refusal(error.value.at_step(7), 5, "step 7: reward 'middle' of plugin 'middle' (label 'my-middle')", said)
    assert f"{files[1]}:" in text
    assert "first" not in text.replace("pytest-", "")
    assert "last" not in text


def test_an_unknown_input_names_the_right_plugin_of_three(tmp_path):
    files = [
        reward_plugin(tmp_path, "first"),
        write(tmp_path, "middle", "def middle(completions, anser): ..."),
        reward_plugin(tmp_path, "last"),
    ]
    registry = load_plugins([files[0], files[2]], entry_points=False)
    names = ["first", f"{files[1]}:middle", "last"]
    rewards = RewardModels([(str(i), 1.0, registry.find("reward", name).build({})) for i, name in enumerate(names)])
    with pytest.raises(PluginError) as error:
        rewards.check_columns(["answer"])
    refusal(error.value, 5, "plugin 'middle'", f"{files[1]}:2", "'anser' (did you mean 'answer'?)")


# ---- rewards that remember ---------------------------------------------------------------------------------


class Counter:
    """Scores 1, 2, 3, ... over all its calls."""

    def __init__(self):
        self.memory = {"count": [0]}

    def __call__(self, completions):
        self.memory["count"][0] += len(completions)
        return list(range(self.memory["count"][0] - len(completions) + 1, self.memory["count"][0] + 1))

    def state_dict(self):
        return self.memory  # the object itself, which later calls change

    def load_state_dict(self, state):
        self.memory = state


def test_what_is_asked_in_between_is_forgotten():
    rewards, batch = models(("counter", 1.0, Counter), lambda completions: [0.0] * 3), RewardBatch(**BATCH)
    assert rewards.call(batch).total == [1, 2, 3]
    for _ in range(2):
        with rewards.forgetting():
            assert rewards.call(batch).total == [4, 5, 6]
    with pytest.raises(ZeroDivisionError), rewards.forgetting():
        rewards.call(batch)
        _ = 1 / 0
    assert rewards.states() == {"counter": {"count": [3]}}
    assert rewards.call(batch).total == [4, 5, 6]
    rewards.restore({"counter": {"count": [10]}, "another": {}})
    assert rewards.call(batch).total == [11, 12, 13]


def test_what_a_reward_remembered_can_be_given_back_twice():
    rewards, batch = models(("counter", 1.0, Counter)), RewardBatch(**BATCH)
    rewards.call(batch)
    kept = rewards.states()
    for _ in range(2):
        rewards.restore(kept)
        assert rewards.call(batch).total == [4, 5, 6]
    assert kept == {"counter": {"count": [3]}}


# ---- on a rollout ------------------------------------------------------------------------------------------


def test_a_reward_is_asked_about_the_rollout_and_told_how_far_the_run_is():
    seen = {}

    def nosy(prompts, completions, prompt_ids, completion_ids, answer, trainer_state, rollout):
        seen.update(locals())
        return [1.0, None, 2.0]

    rollout = replace(random_rollout(3), columns={"answer": ("x", "y", "z")})
    config = Config(ppo=PPOConfig(iterations=8))
    table = call_rewards(models(nosy), rollout, 2, config, Letters())
    assert table.total == [1.0, None, 2.0]
    assert (seen["prompts"], seen["completions"]) == (list(rollout.prompts), list(rollout.completions))
    assert (seen["prompt_ids"], seen["completion_ids"]) == (rollout.prompt_id_lists, rollout.completion_id_lists)
    assert seen["answer"] == ["x", "y", "z"]
    assert torch.equal(seen["rollout"].response_ids, rollout.response_ids)
    assert seen["trainer_state"] == TrainerState(2, 8, 0.25, "letters")
    for iterations, step, epoch in ((1, 1, 1.0), (0, 0, 0.0)):
        call_rewards(models(nosy), rollout, step, Config(ppo=PPOConfig(iterations=iterations)), Letters())
        assert seen["trainer_state"] == TrainerState(step, iterations, epoch, "letters")


def test_rewards_that_take_too_long_are_named():
    config = Config(run=RunConfig(reward_timeout_s=0.05))
    said = r"rewards took longer than run\.reward_timeout_s = 0\.05 s: slow; raise it"
    with pytest.raises(PluginError, match=r"longer than run\.reward_timeout_s = 0\.05 s"):
        call_rewards(models(("slow", 1.0, lambda completions: time.sleep(30))), random_rollout(3), 0, config, Letters())

    async def waits(completions, **kwargs):
        await asyncio.sleep(30)

    with pytest.raises(PluginError, match=said):
        call_rewards(models(("slow", 1.0, waits)), random_rollout(3), 0, config, Letters())
