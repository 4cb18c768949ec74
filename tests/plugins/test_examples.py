"""Every example in plugins/ loads, says how to run it, and does what it says: expected values by hand."""

import csv
import inspect
import sys
from math import e, exp, log
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirlhf.components.checks import check_scores
from minirlhf.components.registry import load_plugins
from minirlhf.errors import PluginError
from minirlhf.rewards.batch import RewardBatch, TrainerState
from minirlhf.rewards.call import RewardModels
from minirlhf.testing import assert_sound
from tests.plugins.files import EXAMPLES, example

NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
LOSSES = {name: example(name).find("loss", name).build({}) for name in ("dual_clip", "gspo", "cispo")}
MASK = torch.tensor([[True, True, True], [True, True, False]])


def chosen(kind, file, name=None, **options):
    return example(file).find(kind, name or file).build(options)


def test_each_example_has_a_test_here():
    here = inspect.getsource(inspect.getmodule(test_each_example_has_a_test_here))
    assert [name for name in NAMES if f'"{name}"' not in here] == []
    assert len(NAMES) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_each_example_says_how_to_run_it(name):
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert f"minirlhf run --plugin plugins/{name}.py --" in source
    assert [c.owner for c in example(name).components if c.owner != "minirlhf"] == [name]


def test_all_examples_live_together():
    registry = load_plugins([str(EXAMPLES / f"{name}.py") for name in NAMES], entry_points=False)
    assert {c.owner for c in registry.components} == {"minirlhf", *NAMES}


def test_brevity():
    built = chosen("reward", "brevity", target=2)
    result = built({"completions": ["a b", "a", "a b c d", ""]})
    assert check_scores(built, result, 4, [[1]] * 4) == [1.0, 1 / 1.5, 0.5, 0.5]


def test_trl_style():
    rewards = RewardModels([("g", 1.0, chosen("reward", "trl_style", "grounded"))])
    result = rewards.call(
        RewardBatch(
            prompts=["a red lens", ""],
            completions=["The red LENS", "x"],
            prompt_ids=[[3], [4]],
            completion_ids=[[3], [4]],
            columns={"topic": ["lens", None]},
            trainer_state=TrainerState(0, 1, 0.0),
        )
    )
    assert result.total == [2 / 3, None]
    assert result.metrics == {"reward/g/skipped": 1.0}


def test_novelty_remembers_across_a_checkpoint():
    built = chosen("reward", "novelty", words=2)
    assert built({"completions": ["a b c", "a b d", "x"]}) == [1, 1 / 2, 1]
    assert built.stateful
    again = chosen("reward", "novelty", words=2)
    again.state.load_state_dict(built.state.state_dict())
    assert again({"completions": ["a b", "y"]}) == [1 / 3, 1]


def test_jeffreys_is_the_kl_both_ways():
    built = chosen("kl", "jeffreys")
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.8, 0.2, 0.0])
    dist = {"log_dist": p.log().expand(2, 3, 3), "ref_log_dist": q.log().expand(2, 3, 3)}
    by_hand = -0.3 * log(0.5 / 0.8) + 0.3 * log(0.5 / 0.2)
    kl = built(dist | {"mask": MASK})
    torch.testing.assert_close(kl, by_hand * MASK.float())
    assert not built.names("logprobs")


def test_gspo_has_one_ratio_a_response():
    built = chosen("loss", "gspo", clip=0.1)
    # log ratios 0.3, 0, 0 (mean 0.1) and -0.2, 0 (mean -0.1; the third token is masked): s = e^0.1, e^-0.1
    new = torch.tensor([[0.3, 0.0, 0.0], [-0.2, 0.0, 9.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    given = {"logprobs": new, "old_logprobs": torch.zeros(2, 3), "advantages": advantages, "mask": MASK}
    loss, metrics = built(given | {"mask": MASK})
    s = exp(0.1)  # above 1.1: cut where A > 0
    torch.testing.assert_close(loss, torch.tensor([[-1.1, s, s], [-exp(-0.1), -exp(-0.1), 0.0]]))
    assert metrics["clipfrac"][0].tolist() == [1, 0, 0]
    loss.sum().backward()  # first row: 2 s / 3 for each token; second row: -2 e^-0.1 / 2
    torch.testing.assert_close(new.grad, torch.tensor([[2 * s / 3] * 3, [-exp(-0.1)] * 2 + [0.0]]))


def test_cispo_bounds_the_weight_and_keeps_the_gradient():
    built = chosen("loss", "cispo", high=0.5)
    new = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, 0.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, 2.0, -1.0], [-1.0, 1.0, 0.0]])
    given = {"logprobs": new, "old_logprobs": torch.zeros(2, 3), "advantages": advantages}
    loss, metrics = built(given | {"mask": MASK})
    torch.testing.assert_close(loss, torch.tensor([[-1.5, 0.0, -1 / e], [3.0, 0.0, 0.0]]))
    assert metrics["cut"].tolist() == [[1, 0, 0], [1, 0, 0]]
    loss.sum().backward()
    torch.testing.assert_close(new.grad, torch.tensor([[-1.5, -2.0, 1 / e], [1.5, -1.0, 0.0]]))


def test_remax_is_the_return_to_go_minus_the_greedy_score():
    built = chosen("advantage", "remax")
    rewards = torch.tensor([[-1.0, 0.0, 5.0], [2.0, 1.0, float("nan")]])
    given = {"rewards": rewards, "mask": MASK, "greedy_scores": torch.tensor([1.0, 2.0]), "values": rewards}
    advantages = built(given | {"mask": MASK})
    assert advantages.tolist() == [[3, 4, 4], [1, -1, 0]]
    assert built.names("greedy_scores")
    assert not built.names("values")


def test_dual_clip_holds_the_cost_of_a_bad_token():
    built = chosen("loss", "dual_clip", clip=0.2, floor=3.0)
    # rho = e^2, 1, 1/e  (A = 1, 1, 1)  and  e^2, 1.1  (A = -1, -1)
    new = torch.tensor([[2.0, 0.0, -1.0], [2.0, 0.0953102, 0.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 0.0]])
    given = {"logprobs": new, "old_logprobs": torch.zeros(2, 3), "advantages": advantages, "mask": MASK}
    loss, metrics = built(given)
    torch.testing.assert_close(loss, torch.tensor([[-1.2, -1.0, -1 / e], [3.0, 1.1, 0.0]]))
    assert metrics["floored"].tolist() == [[0, 0, 0], [1, 0, 0]]
    assert exp(2) > 3  # without the floor this token would cost e^2
    loss.sum().backward()
    torch.testing.assert_close(new.grad, torch.tensor([[0.0, -1.0, -1 / e], [0.0, 1.1, 0.0]]))


def test_csv_log_writes_one_row_a_step(tmp_path):
    built = chosen("observer", "csv_log")
    built.tell("start", None, tmp_path)
    built.tell("step", 1, None, {"a": 0.5, "b": 2.0})
    built.tell("step", 2, None, {"b": 3.0, "a": 1.5, "new": 9.0})
    built.tell("step", 3, None, {"a": 2.5})
    built.tell("finish", {})
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["step", "a", "b"],
            ["1", "0.5", "2.0"],
            ["2", "1.5", "3.0"],
            ["3", "2.5", ""],
        ]


# ---- trackers, each with a stub module in place of its package --------------------------------------------

CONFIG = SimpleNamespace(ppo=SimpleNamespace(iterations=3), model_dump=lambda mode: {"mode": mode})


@pytest.fixture
def tracker(monkeypatch):
    """Install a stub module of a name: its init records the arguments, and the run it returns records the calls."""

    def put(name):
        module, module.lives = ModuleType(name), []

        def init(**given):
            calls, summary = [], {}
            module.lives.append(SimpleNamespace(given=given, calls=calls, summary=summary))
            return SimpleNamespace(
                log=lambda metrics, **more: calls.append((metrics, more)),
                define_metric=lambda *names, **more: calls.append((names, more)),
                finish=lambda: calls.append("finish"),
                summary=summary,
            )

        module.init, module.Settings = init, lambda **given: given
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


def two_lives(name, folder):
    """Watch a run of steps 1 and 2, and a resumed one that goes on with step 3 to the end."""
    for steps in ((1, 2), (3,)):
        built = chosen("observer", name)
        built.tell("start", CONFIG, folder)
        for step in steps:
            built.tell("step", step, None, {"a": step / 2})
    built.tell("finish", {"gain": 0.5, "policy": {"mean": 2.0}})


def test_wandb_log_is_offline_and_goes_on_under_its_id(tmp_path, tracker, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb = tracker("wandb")
    two_lives("wandb_log", tmp_path)
    first, second = wandb.lives
    assert (first.given["mode"], first.given["dir"], first.given["config"]) == ("offline", tmp_path, {"mode": "json"})
    assert first.given["id"] == second.given["id"] == (tmp_path / "wandb_id").read_text()
    assert {life.given["resume"] for life in wandb.lives} == {"allow"}
    axis = (("*",), {"step_metric": "step"})
    assert first.calls == [axis, ({"step": 1, "a": 0.5}, {}), ({"step": 2, "a": 1.0}, {})]
    assert second.calls == [axis, ({"step": 3, "a": 1.5}, {}), "finish"]
    assert second.summary == {"evaluation": {"gain": 0.5, "policy": {"mean": 2.0}}}
    monkeypatch.setenv("WANDB_MODE", "online")
    (tmp_path / "other").mkdir()
    two_lives("wandb_log", tmp_path / "other")
    assert wandb.lives[2].given["mode"] == "online"
    assert wandb.lives[2].given["id"] != first.given["id"]


def test_trackio_log_goes_on_under_its_name(tmp_path, tracker):
    trackio = tracker("trackio")
    two_lives("trackio_log", tmp_path)
    first, second = trackio.lives
    assert first.given == second.given
    assert first.given["name"] == (tmp_path / "trackio_name").read_text()
    assert first.given["name"].startswith(f"{tmp_path.name}-")
    assert first.given["resume"] == "allow"
    assert first.calls == [({"a": 0.5}, {"step": 1}), ({"a": 1.0}, {"step": 2})]
    evaluation = {"evaluation/gain": 0.5, "evaluation/policy/mean": 2.0}
    assert second.calls == [({"a": 1.5}, {"step": 3}), (evaluation, {"step": 3}), "finish"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_is_sound_and_its_missing_package_is_said_before_a_run(name, tracker, monkeypatch):
    tracker(name)
    (component,) = [c for c in example(f"{name}_log").components if c.owner == f"{name}_log"]
    assert_sound("observer", component.fn)
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(PluginError, match=f"{name} is missing: pip install {name}"):
        component.build({})


@pytest.mark.parametrize("name", ["dual_clip", "gspo", "cispo"])
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=4), st.floats(-10, 10, width=32))
def test_a_loss_is_finite_with_its_gradient_at_every_ratio_and_zero_without_advantage(name, log_ratios, advantage):
    built = LOSSES[name]
    new = torch.tensor([[*log_ratios, 3.0]], requires_grad=True)
    advantages, mask = torch.full(new.shape, advantage), torch.ones(new.shape, dtype=torch.bool)
    mask[0, -1] = False
    given_ = {"logprobs": new, "old_logprobs": torch.zeros(new.shape), "advantages": advantages, "mask": mask}
    values, _ = built(given_ | {"mask": mask})
    values.sum().backward()
    assert values.isfinite().all()
    assert new.grad.isfinite().all()
    assert new.grad[0, -1] == 0
    if advantage == 0:
        assert (values == 0).all()


@given(st.integers(0, 1000))
def test_remax_ignores_what_is_masked(seed):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, 4, generator=g) < 0.6
    rewards, greedy = torch.randn(3, 4, generator=g), torch.randn(3, generator=g)
    built = chosen("advantage", "remax")
    found = [
        built({"rewards": rewards.where(mask, junk), "mask": mask, "greedy_scores": greedy})
        for junk in (0.0, float("nan"), 1e30)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert (found[0][~mask] == 0).all()
