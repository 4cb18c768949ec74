"""Signatures are contracts: what binds to what, what is refused, and what may come back."""

from __future__ import annotations  # every annotation below is a string, as in many plugins

import asyncio
import functools
import io
import os
import signal
import sys
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Optional

import numpy as np
import pytest
import torch

from minirlhf.components.checks import check_loss, check_scores, check_tensor
from minirlhf.components.component import INPUTS, KINDS, REQUIRED
from minirlhf.components.signature import read_component
from minirlhf.errors import ConfigError, DivergedError, PluginError
from tests.plugins.files import built, refusal

if TYPE_CHECKING:
    from nowhere import Unknown  # an input may be annotated with what is never imported

HERE = __file__
IDS = [[5, 6, 2], [7, 2]]


def read(kind, fn):
    return read_component(kind, "it", "p", "p.py", fn)


# ---- binding -----------------------------------------------------------------------------------------------


def test_each_parameter_finds_its_place():
    def fn(completions: Unknown, answer, style="plain", *, target: int = 3, rollout, **columns): ...

    c = read("reward", fn)
    assert c.inputs == ("completions", "rollout")
    assert c.columns == ("answer",)
    assert c.defaults == ("style",)
    assert c.takes_columns
    assert {name: (o.annotation, o.default) for name, o in c.options.items()} == {"target": (int, 3)}


def test_an_option_wins_over_an_input_of_its_name():
    # Inputs of a kind are only ever added: a plugin whose option has the name of a later input still works.
    def fn(logprobs, *, beta: float = 0.5):
        return logprobs * beta

    component = read("loss", fn)
    assert component.inputs == ("logprobs",)
    x = torch.ones(1, 2)
    loss, _ = component.build({})({"logprobs": x, "beta": 9.0, "mask": x.bool()})
    assert loss.tolist() == [[0.5, 0.5]]


def test_an_input_with_a_default_gets_the_input():
    def fn(logprobs, ref_logprobs=None):
        return ref_logprobs

    x = torch.ones(1, 2)
    assert built("kl", fn)({"logprobs": x, "mask": x.bool(), "ref_logprobs": 3 * x}).tolist() == [[3, 3]]


def test_only_what_is_named_is_passed():
    def fn(rewards, **_):  # would be refused for advantages; here for the names only
        ...

    k3 = built("kl", lambda logprobs, ref_logprobs: 0)
    assert [name for name in INPUTS["kl"] if k3.names(name)] == ["logprobs", "ref_logprobs"]
    rest = built("reward", lambda completions, **columns: 0)
    assert rest.names("anything")


def test_a_partial_a_lambda_and_a_callable_object_are_functions_too():
    class Scale:
        def __call__(self, completions, *, by: float = 2.0):
            return [by] * len(completions)

    def scaled(completions, *, by: float = 1.0):
        return [by] * len(completions)

    assert built("reward", Scale(), by=3)({"completions": ["a"]}) == [3.0]
    assert built("reward", functools.partial(scaled, by=4.0))({"completions": ["a"]}) == [4.0]
    assert built("reward", lambda completions: [1.0])({"completions": ["a"]}) == [1.0]


@pytest.mark.parametrize(
    ("kind", "fn", "said"),
    [
        ("kl", lambda *logprobs: 0, "takes *logprobs by position"),
        ("reward", lambda completions, /: 0, "takes completions by position"),
        ("kl", lambda logprobs, **rest: 0, "takes **rest"),
        ("kl", lambda logprob: 0, "an unknown input 'logprob' (did you mean 'logprobs'"),
        ("advantage", lambda reward, mask: 0, "did you mean 'rewards'"),
        ("loss", lambda logprobs, *, mystery: 0, "an unknown input 'mystery'"),
        ("reward", dict.get, "by position"),
        ("reward", type("NoCall", (), {}), "is a class without __call__"),
        ("reward", 3, "is not a function but 3 (int)"),
        ("observer", lambda: 0, "is not a class"),
        ("observer", type("Half", (), {"start": id, "step": id}), "has no finish"),
    ],
)
def test_a_signature_that_cannot_be_bound_is_refused(kind, fn, said):
    with pytest.raises(PluginError) as error:
        read(kind, fn)
    refusal(error.value, 5, "'it' of plugin 'p'", said)


def test_an_unreadable_signature_is_refused():
    class Odd:
        __signature__ = "none"

        def __call__(self, completions): ...

    with pytest.raises(PluginError) as error:
        read("reward", Odd())
    refusal(error.value, 5, "has no signature that can be read", "wrap it in a def")


def test_a_class_takes_options_in_init_and_inputs_in_call():
    class Ends:
        """Ends with a mark."""

        def __init__(self, *, mark: str, times: int = 1):
            self.end = mark * times

        def __call__(self, completions):
            return [text.endswith(self.end) for text in completions]

    component = read("reward", Ends)
    assert component.inputs == ("completions",)
    assert component.options["mark"].default is REQUIRED
    assert component.option_faults({}) == ["mark: reward 'it' of plugin 'p' needs this option"]
    ends = component.build({"mark": "!", "times": 2})
    assert ends({"completions": ["a!!", "a!"]}) == [True, False]
    assert component.doc == "Ends with a mark."
    assert [str(option) for option in component.options.values()] == ["mark: str", "times: int = 1"]


def test_a_class_that_needs_a_positional_argument_is_refused():
    class Needs:
        def __init__(self, model): ...
        def __call__(self, completions): ...

    with pytest.raises(PluginError) as error:
        read("reward", Needs)
    refusal(error.value, 5, "__init__ needs 'model'", HERE)


def test_a_constructor_that_raises_is_named():
    class Broken:
        def __init__(self):
            raise OSError("no such weights")

        def __call__(self, completions): ...

    with pytest.raises(PluginError) as error:
        built("reward", Broken)
    refusal(error.value, 5, "raised OSError (no such weights)", HERE)


def test_a_module_is_frozen_in_eval_on_its_device():
    class Scorer(torch.nn.Module):
        def __init__(self, *, width: int = 2):
            super().__init__()
            self.linear = torch.nn.Linear(width, 1)

        def forward(self, rollout): ...

    scorer = built("reward", Scorer)
    assert scorer.component.inputs == ("rollout",)
    assert not scorer.state.training
    assert not any(p.requires_grad for p in scorer.state.parameters())
    assert not scorer.stateful  # frozen: nothing to save
    moved = read("reward", Scorer).build({}, device="meta").state
    assert {p.device.type for p in moved.parameters()} == {"meta"}


def test_a_class_with_state_is_checkpointed():
    class Remembers:
        def __call__(self, completions): ...
        def state_dict(self): ...
        def load_state_dict(self, state): ...

    assert built("reward", Remembers).stateful
    assert not built("reward", lambda completions: 0).stateful


# ---- options -----------------------------------------------------------------------------------------------


def typed(
    completions,
    *,
    flag: bool = False,
    count: int = 1,
    share: float = 0.5,
    name: str = "a",
    words: list[str] = [],  # noqa: B006
    pair: tuple[int, float] = (1, 2.0),
    mode: Literal["sum", "mean"] = "sum",
    limit: float | None = None,
    top: Optional[int] = None,  # noqa: UP045
    anything=None,
):
    return locals()


@pytest.mark.parametrize(
    ("name", "value", "becomes"),
    [
        ("flag", True, True),
        ("count", 7, 7),
        ("share", 1, 1.0),
        ("share", 0.25, 0.25),
        ("words", ["a", "b"], ["a", "b"]),
        ("pair", [2, 3], (2, 3.0)),
        ("mode", "mean", "mean"),
        ("limit", None, None),
        ("limit", 2, 2.0),
        ("top", 3, 3),
        ("anything", {"x": [1]}, {"x": [1]}),
    ],
)
def test_an_option_gets_what_its_annotation_says(name, value, becomes):
    component = read("reward", typed)
    assert component.option_faults({name: value}) == []
    got = component.build({name: value})({"completions": []})[name]
    assert got == becomes
    assert type(got) is type(becomes)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("flag", 1, "expected bool"),
        ("count", True, "expected int"),
        ("count", 1.0, "expected int"),
        ("count", "1", "expected int"),
        ("share", "0.2", "expected float"),
        ("share", True, "expected float"),
        ("share", float("nan"), "must be finite"),
        ("share", float("inf"), "must be finite"),
        ("anything", [float("nan")], "must be finite"),
        ("name", 3, "expected str"),
        ("words", ["a", 1], "at [1]"),
        ("pair", [1], "expected tuple[int, float]"),
        ("mode", "max", "'sum' or 'mean'"),
        ("top", "x", "expected "),
        ("anything", object, "not JSON serializable"),
        ("shares", 1, "did you mean 'share'?"),
        ("completions", [], "options are keyword-only"),
    ],
)
def test_an_option_of_another_type_or_name_is_a_fault(name, value, said):
    component = read("reward", typed)
    (fault,) = component.option_faults({name: value})
    assert fault.startswith(f"{name} = {value!r}: ")
    assert said in fault
    with pytest.raises(ConfigError) as error:
        component.build({name: value})
    refusal(error.value, 2, said)


def test_all_faults_are_reported_in_one_go():
    assert len(read("reward", typed).option_faults({"share": "x", "count": "y", "nix": 1})) == 3


def test_only_the_annotations_of_options_are_evaluated():
    def fn(completions: NotThere, *, target: int = 1) -> AlsoNotThere: ...  # noqa: F821

    assert read("reward", fn).options["target"].annotation is int

    def bad(completions, *, size: NotThere = 1): ...  # noqa: F821

    with pytest.raises(PluginError) as error:
        read("reward", bad)
    refusal(error.value, 5, "option 'size'", "'NotThere'", HERE)


def test_an_annotation_that_no_config_can_hold_is_refused_when_it_is_set():
    def fn(completions, *, hook: "torch.Generator" = None): ...  # noqa: UP037

    component = read("reward", fn)
    assert component.option_faults({}) == []
    with pytest.raises(PluginError) as error:
        component.option_faults({"hook": 1})
    refusal(error.value, 5, "option 'hook'", "Generator")


# ---- calling -----------------------------------------------------------------------------------------------


class Unprintable:
    def __str__(self):
        raise RuntimeError

    __repr__ = __str__


def deeper(n):
    return deeper(n + 1)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (lambda: [][1], "IndexError (list index out of range)"),
        (lambda: sys.exit(3), "SystemExit (3)"),
        (lambda: deeper(0), "RecursionError"),
        (lambda: (_ for _ in ()).throw(asyncio.CancelledError()), "CancelledError"),
        (lambda: {}["a\nb\x1b[2J"], "KeyError ('a\\nb\\x1b[2J')"),
        (lambda: (_ for _ in ()).throw(OSError("a\nb\x1b[2J" + "x" * 999)), "OSError (a b [2Jxxx"),
        (lambda: (_ for _ in ()).throw(OSError(Unprintable())), "OSError (unreadable)"),
    ],
)
def test_whatever_a_plugin_raises_becomes_one_line_that_names_it(action, said):
    def fn(completions):
        action()

    with pytest.raises(PluginError) as error:
        built("reward", fn)({"completions": []})
    text = refusal(error.value, 5, "reward 'it' of plugin 'p' raised", said, f"{HERE}:")
    assert text.isprintable()
    assert len(text) < 600


def test_the_line_is_where_it_was_raised():
    def fn(completions):
        x = 1
        return x / 0

    line = fn.__code__.co_firstlineno + 2
    with pytest.raises(PluginError) as error:
        built("reward", fn)({"completions": []})
    refusal(error.value, 5, f"{HERE}:{line};")


def test_an_interrupt_is_the_users_and_passes():
    def fn(completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built("reward", fn)({"completions": []})


def test_prints_go_to_stderr(capsys):
    built("reward", lambda completions: print("hello"))({"completions": []})
    out, err = capsys.readouterr()
    assert (out, err) == ("", "hello\n")


def test_what_a_plugin_sets_globally_is_put_back(tmp_path):
    def fn(completions):
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        os.chdir(tmp_path)

    before = os.getcwd()
    built("reward", fn)({"completions": []})
    assert (os.getcwd(), torch.get_default_dtype(), torch.is_grad_enabled()) == (before, torch.float32, True)


def test_what_a_run_relies_on_is_put_back(monkeypatch):
    def fn(completions):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        torch.set_num_threads(3)
        torch.set_default_device("meta")
        sys.stdout.close()
        sys.stderr = None

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    before = signal.getsignal(signal.SIGTERM)
    built("reward", fn)({"completions": []})
    assert not sys.stderr.closed
    assert sys.stderr.fileno() == 2
    assert signal.getsignal(signal.SIGTERM) == before
    assert (torch.get_num_threads(), torch.get_default_device().type) == (1, "cpu")


def test_a_change_in_place_is_found():
    def fn(rewards, mask):
        rewards[:, -1] += 1
        return rewards

    with pytest.raises(PluginError) as error:
        built("advantage", fn)({"rewards": torch.zeros(1, 2), "mask": torch.ones(1, 2, dtype=torch.bool)})
    refusal(error.value, 5, "changed its input rewards in place", "rewards.clone()")


@pytest.mark.parametrize("kind", ["kl", "loss"])
def test_a_result_that_lost_its_gradient_is_found(kind):
    known = {"logprobs": torch.zeros(1, 2, requires_grad=True), "mask": torch.ones(1, 2, dtype=torch.bool)}
    with pytest.raises(PluginError) as error:
        built(kind, lambda logprobs: logprobs.detach() * 2)(known)
    refusal(error.value, 5, "without a gradient")
    result = built(kind, lambda logprobs: logprobs * 2)(known)
    assert (result[0] if kind == "loss" else result).requires_grad
    with torch.no_grad():  # in the reward, nothing is differentiated
        built(kind, lambda logprobs: logprobs.detach())(known)


def test_an_observer_is_told_and_named_when_it_fails():
    class Watch:
        def start(self, config, run_dir):
            self.got = (config, run_dir)

        def step(self, step, experience, metrics):
            raise ValueError("full")

        def finish(self, summary): ...

    watch = built("observer", Watch)
    watch.tell("start", 1, 2)
    assert watch.state.got == (1, 2)
    with pytest.raises(PluginError) as error:
        watch.tell("step", 1, None, {})
    refusal(error.value, 5, "observer 'it' of plugin 'p' raised ValueError (full)")


# ---- tensors that come back --------------------------------------------------------------------------------

MASK = torch.tensor([[True, True, False], [True, False, False]])


def tensor_of(kind="kl"):
    return built(kind, lambda mask: mask)


def test_junk_under_the_mask_has_no_effect():
    x = torch.tensor([[1.0, 2.0, float("nan")], [3.0, float("inf"), 7.0]], requires_grad=True)
    out = check_tensor(tensor_of(), x, MASK)
    assert out.tolist() == [[1, 2, 0], [3, 0, 0]]
    out.sum().backward()
    assert x.grad.tolist() == [[1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("kind", ["kl", "advantage", "loss"])
def test_a_call_returns_the_checked_result(kind):
    """Zeros under the mask, a refusal of what is not finite on it; advantages are data, without a gradient."""
    name = "rewards" if kind == "advantage" else "logprobs"
    fn = built(kind, lambda rewards: 2 * rewards) if kind == "advantage" else built(kind, lambda logprobs: 2 * logprobs)
    x = torch.tensor([[1.0, 2.0, float("nan")], [3.0, float("inf"), 7.0]], requires_grad=True)
    result = fn({name: x, "mask": MASK})
    values = result[0] if kind == "loss" else result
    assert values.tolist() == [[2, 4, 0], [6, 0, 0]]
    assert values.requires_grad == (kind != "advantage")
    bad = built(kind, eval(f"lambda {name}: {name} / 0"))
    with pytest.raises(PluginError, match=r"wrong value at index \(0, 0\)"):
        bad({name: torch.ones(2, 3), "mask": MASK})
    later = []
    bad({name: torch.ones(2, 3), "mask": MASK}, later)  # its numbers are looked at when somebody asks
    with pytest.raises(PluginError, match=r"wrong value at index \(0, 0\)"):
        later[0]()


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, "got None"),
        ([[0.0] * 3] * 2, "(list)"),
        (torch.zeros(2), "got float32 of shape (2,)"),
        (torch.zeros(3, 2), "shape (3, 2)"),
        (torch.zeros(2, 3, dtype=torch.long), "got int64 of shape (2, 3)"),
        (torch.zeros(2, 3, device="meta"), "on meta"),
        (
            torch.tensor([[0, 0, 0], [float("nan"), 0, 0]]),
            "at index (1, 0) (expected a finite number, got nan)",
        ),
        (
            torch.tensor([[0, float("-inf"), 0], [0, 0, 0]]),
            "at index (0, 1) (expected a finite number, got -inf)",
        ),
    ],
)
def test_a_wrong_tensor_is_refused(result, said):
    with pytest.raises(PluginError) as error:
        check_tensor(tensor_of(), result, MASK)
    refusal(error.value, 5, "KL estimator 'it' of plugin 'p' returned", said, HERE)


def test_a_model_that_diverged_is_not_the_plugins_fault():
    fn = built("kl", lambda logprobs: logprobs)
    nan = torch.full((2, 3), float("nan"))
    with pytest.raises(DivergedError) as error:
        check_tensor(fn, nan, MASK, {"logprobs": nan, "ref_logprobs": nan})
    refusal(error.value, 3, "logprobs is not finite")
    padding = torch.where(MASK, 0.0, nan)  # junk where nobody looks explains nothing
    with pytest.raises(PluginError):  # nor does an input that it does not take
        check_tensor(fn, nan, MASK, {"logprobs": padding, "ref_logprobs": nan})


def test_a_loss_may_bring_metrics():
    fn, loss = built("loss", lambda logprobs: 0), torch.ones(2, 3)
    values, metrics = check_loss(fn, (loss, {"a": torch.ones(2, 3), "b": torch.tensor(2.0), "c": 3}), MASK)
    assert values.tolist() == [[1, 1, 0], [1, 0, 0]]
    assert {name: float(x.float().mean()) for name, x in metrics.items()} == {"a": 1, "b": 2, "c": 3}
    assert check_loss(fn, loss, MASK)[1] == {}


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ((torch.ones(2, 3), {"a": torch.ones(3)}), "wrong metric 'a'"),
        ((torch.ones(2, 3), {"a": "x"}), "wrong metric 'a'"),
        ((torch.ones(2, 3), {"a": 10**400}), "raised OverflowError"),
        ((torch.ones(2, 3), 5), "wrong metrics"),
        ((torch.ones(2, 3), {}, {}), "(tuple)"),
        (({}, torch.ones(2, 3)), "wrong metrics"),
    ],
)
def test_wrong_metrics_of_a_loss_are_refused(result, said):
    with pytest.raises(PluginError) as error:
        check_loss(built("loss", lambda logprobs: 0), result, MASK)
    refusal(error.value, 5, "policy loss 'it' of plugin 'p'", said)


# ---- scores that come back ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ([0.5, 1], [0.5, 1.0]),
        ((True, False), [1.0, 0.0]),
        ([None, 0.25], [None, 0.25]),
        ([None, None], [None, None]),
        ([Fraction(1, 4), np.float32(0.5)], [0.25, 0.5]),
        ([np.bool_(True), np.int64(3)], [1.0, 3.0]),
        ([torch.tensor(1.5), torch.tensor(2.0, requires_grad=True)], [1.5, 2.0]),
        (np.array([1.0, 2.0]), [1.0, 2.0]),
        (np.array([1, 2], dtype=np.int8), [1.0, 2.0]),
        (np.array([1.0, None], dtype=object), [1.0, None]),
        (torch.tensor([1.0, 2.0], dtype=torch.float64), [1.0, 2.0]),
        (torch.tensor([1.0, 2.0], dtype=torch.bfloat16), [1.0, 2.0]),
        (torch.tensor([1.0, 2.0], requires_grad=True), [1.0, 2.0]),
        (torch.tensor([True, False]), [1.0, 0.0]),
        ([1e38, -1e38], [1e38, -1e38]),
        ([[0.5, 0.5, 1], [1, 2]], [[0.5, 0.5, 1.0], [1.0, 2.0]]),
        ([(0.5, 0.5, 1), None], [[0.5, 0.5, 1.0], None]),
        ([torch.ones(3), np.ones(2)], [[1.0, 1.0, 1.0], [1.0, 1.0]]),
        ([1.0, [1.0, 2.0]], [1.0, [1.0, 2.0]]),
    ],
)
def test_scores_are_accepted_and_become_plain_floats(result, expected):
    got = check_scores(built("reward", lambda completions: 0), result, 2, IDS)
    assert got == expected
    flat = [x for row in got for x in (row if isinstance(row, list) else [row])]
    assert {type(x) for x in flat} <= {float, type(None)}


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, "got None; does the function end without a return?"),
        (0.5, "expected 2 values, one for each completion, got 0.5 (float)"),
        (torch.tensor(0.5), "got 0.5 (float)"),
        ("ab", "got 'ab' (str)"),
        ({"a": 1, "b": 2}, "(dict)"),
        ((x for x in (1, 2)), "(generator)"),
        ([], "got 0: index 0 is missing"),
        ([1.0], "expected 2 values, one for each completion, got 1: index 1 is missing"),
        ([1.0, 2.0, 3.0], "got 3: index 2 is one too many"),
        (torch.zeros(2, 1), "at index 0 (expected a number, or 3 numbers for its 3 tokens, got 1 values)"),
        (torch.zeros(2, 3), "at index 1 (expected a number, or 2 numbers for its 2 tokens, got 3 values)"),
        ([1.0, "good"], "at index 1 (expected a finite number or None, got 'good' (str))"),
        (np.array(["a", "b"]), "at index 0 (expected a finite number or None, got 'a' (str))"),
        ([1.0, float("nan")], "at index 1 (expected a finite number or None, got nan (float))"),
        ([float("inf"), 1.0], "at index 0 (expected a finite number or None, got inf (float))"),
        (torch.tensor([0.0, float("nan")]), "at index 1 (expected a finite number or None, got nan"),
        ([1.0, 1e39], "at index 1 (expected a finite number or None, got 1e+39 (float))"),
        ([1.0, 10**400], "at index 1 (expected a finite number"),
        ([1.0, 1 + 1j], "(complex)"),
        ([1.0, {"score": 1}], "(dict)"),
        ([Unprintable(), 1.0], "got unreadable (Unprintable)"),
        ([[1.0, 2.0, 3.0], [1.0, None]], "at index 1 (token 1: expected a finite number, got None)"),
        ([[1.0, 2.0, [3.0]], 1.0], "at index 0 (token 2: expected a finite number, got [3.0] (list))"),
    ],
)
def test_wrong_scores_are_refused_with_the_first_bad_index(result, said):
    with pytest.raises(PluginError) as error:
        check_scores(built("reward", lambda completions: 0), result, 2, IDS)
    refusal(error.value, 5, "reward 'it' of plugin 'p' returned", said, HERE, "return one float or None")


def test_a_result_that_raises_when_it_is_read_is_named():
    class Trap:
        def tolist(self):
            raise RuntimeError("boom")

    with pytest.raises(PluginError) as error:
        check_scores(built("reward", lambda completions: 0), Trap(), 2, IDS)
    refusal(error.value, 5, "reward 'it' of plugin 'p' raised RuntimeError (boom)")


def test_the_kinds_and_their_inputs():
    assert set(INPUTS) == set(KINDS)
    shared = {"logprobs", "old_logprobs", "ref_logprobs", "mask"}
    assert shared <= set(INPUTS["kl"])
    assert shared <= set(INPUTS["loss"])
    with pytest.raises(ValueError, match="kind must be one of"):
        read("rewards", lambda completions: 0)


def test_annotations_of_any_kind_are_kept_for_show() -> Any:
    options = read("reward", typed).options
    assert str(options["limit"]) in ("limit: float | None = None", "limit: Optional[float] = None")
    assert str(options["anything"]) == "anything = None"
