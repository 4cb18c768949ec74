"""For the authors of plugins: is a component what the loop expects, on batches that find out what usually goes wrong?

    from minirlhf.testing import assert_sound

    def test_it():
        assert_sound("reward", brevity, target=12)

The same checks as `minirlhf plugins check`. Rewards get texts of all kinds (empty, long, in any writing), in one batch,
in another order and one at a time; estimators get ragged masks with NaN behind them; observers watch three steps.
Not here: whether an estimator estimates what it should (`minirlhf audit`).
"""

import copy
import inspect
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from minirlhf.components.component import INPUTS, REQUIRED, Built, Component, Option
from minirlhf.components.registry import load_plugins
from minirlhf.components.signature import read_component  # fmt: skip
from minirlhf.config.layers import load_config
from minirlhf.config.schema import Config
from minirlhf.errors import ConfigError, PluginError, UsageError, UserError, nearest
from minirlhf.models.rollout import Rollout
from minirlhf.rewards.batch import RewardBatch, TrainerState
from minirlhf.rewards.call import RewardModels
from minirlhf.rl.experience import Experience
from minirlhf.streams import generator
from minirlhf.text.corpus import Prompt

PROMPTS = ("I bought this kettle", "", "你好", "A question?\nWith two lines.")
COMPLETIONS = (
    " and it is good.", "", " ", " 茶很好。", " naïve café 👩‍👩‍👧 e\u0301 \u202eabc", " a" * 5000, "\n\t\0",
    " <eos> </s> [INST] %s {0}",
)  # fmt: skip
PAD, BOS, EOS, BYTE = 0, 1, 2, 3  # ids of the texts: the bytes of UTF-8 begin at BYTE
LONGEST = 64  # ids of a completion: of a longer text the beginning, as of a response that was cut
SAME = 1e-5  # relative: how far two results may be apart and still be one
STEPS = 3  # of the run that an observer watches
EXAMPLES = {"str": '"..."', "list[str]": '["..."]', "int": "N", "float": "N"}  # a value, by annotation


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it holds, what was found, and what to do where it does not hold (nothing where what
    was found says it)."""

    name: str
    holds: bool
    found: str = ""
    todo: str = ""


def assert_sound(kind: str, function: Callable[..., Any], *, prompts: Sequence[Prompt] = (), **options: Any) -> None:
    """AssertionError with every check that a component (reward, kl, advantage, loss, observer) does not pass.

    prompts: with the columns that a reward asks for. options: as the configuration would give them. UsageError if a
    column or an option is missing without which the component says nothing.
    """
    path = getattr(inspect.getmodule(function), "__file__", None) or "a test"
    component = read_component(kind, getattr(function, "__name__", "it"), "the plugin under test", path, function)
    bad = [f for f in check(prepare(component, options), prompts) if not f.holds]
    assert not bad, "\n".join(f"{f.name}: {f.found}" + (f"; {f.todo}" if f.todo else "") for f in bad)


def prepare(component: Component, options: Mapping[str, Any]) -> Built:
    """The component with these options, as it is checked. Raises UsageError for an option that has to be given, and
    whatever `Component.build` raises."""
    required = [o for o in component.options.values() if o.default is REQUIRED and o.name not in options]
    if required:
        raise _needs(component, required)
    try:
        return component.build(options, device="cpu")
    except UserError as fault:
        blank = [] if isinstance(fault, ConfigError) else _blank(component, options)
        if blank and (isinstance(fault, UsageError) or isinstance(fault.__cause__, ValueError)):
            raise _needs(component, blank, fault) from fault
        raise


def check(built: Built, prompts: Sequence[Prompt] = ()) -> Iterator[Finding]:
    """All checks of its kind, in order; those that need the first one to hold are left out where it does not.

    Raises UsageError as `assert_sound` does, before the first finding.
    """
    if built.component.kind == "reward":
        return check_reward(built, prompts)
    return check_observer(built) if built.component.kind == "observer" else check_estimator(built)


def _blank(component: Component, options: Mapping[str, Any]) -> list[Option]:
    """The options that were not given and whose default is empty: None, "", [] and the like."""
    rest = [o for o in component.options.values() if o.name not in options]
    return [
        o for o in rest if o.default is None or (isinstance(o.default, str | list | tuple | dict) and not o.default)
    ]


def _needs(component: Component, missing: Sequence[Option], fault: UserError | None = None) -> UsageError:
    """What to give, in the words of the command line."""
    cause = fault and (fault.__cause__ or fault)
    names = " and ".join(o.name for o in missing)
    values = [(o.name, EXAMPLES.get(inspect.formatannotation(o.annotation), "...")) for o in missing]
    how = " ".join(f"--set '{name}={value}'" for name, value in values)
    what = f"{component.title} needs {names} to be given" + (f" ({cause})" if cause else "")
    return UsageError(what, component.where, f"give {how}")


# ---- rewards ----------------------------------------------------------------------------------------------

Row = list[float] | None  # what a completion got: the score, then a number a token (0 where only the score was given)


@dataclass(frozen=True)
class _Texts:
    """Prompts and completions, one each a row, with the columns of the rows."""

    prompts: tuple[str, ...]
    completions: tuple[str, ...]
    columns: Mapping[str, tuple[Any, ...]]

    @classmethod
    def of(cls, rows: Sequence[Prompt]) -> "_Texts":
        picked = [rows[i % len(rows)] for i in range(len(COMPLETIONS))]
        names = sorted({name for row in rows for name in row.columns})
        columns = {name: tuple(row.columns.get(name) for row in picked) for name in names}
        return cls(tuple(row.text for row in picked), COMPLETIONS, columns)

    def rows(self, order: Sequence[int]) -> "_Texts":
        columns = {name: tuple(values[i] for i in order) for name, values in self.columns.items()}
        return _Texts(tuple(self.prompts[i] for i in order), tuple(self.completions[i] for i in order), columns)

    def rollout(self) -> Rollout:
        """As the loop would have sampled them: (8,P), (8,R), int64 on the CPU."""
        prompts = [[BOS, *(BYTE + byte for byte in text.encode())] for text in self.prompts]
        bytes_ = [text.encode() for text in self.completions]
        ended = [len(text) < LONGEST for text in bytes_]
        answers = [
            [*(BYTE + b for b in text[:LONGEST]), *([EOS] if end else [])]
            for text, end in zip(bytes_, ended, strict=True)
        ]
        p, r = (max(len(ids) for ids in lists) for lists in (prompts, answers))
        prompt_ids = torch.tensor([[PAD] * (p - len(ids)) + ids for ids in prompts])
        response_ids = torch.tensor([ids + [PAD] * (r - len(ids)) for ids in answers])
        kinds = list(dict.fromkeys(self.prompts))
        return Rollout(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_ids != PAD,
            response_ids=response_ids,
            response_mask=response_ids != PAD,
            mask=response_ids != PAD,
            terminated=torch.tensor(ended),
            group=torch.tensor([kinds.index(text) for text in self.prompts]),
            prompts=self.prompts,
            completions=self.completions,
            columns=self.columns,
        )

    def score(self, built: Built) -> list[Row]:
        """Called and checked as the loop does it."""
        rollout = self.rollout()
        scores = RewardModels([(built.component.name, 1.0, built)]).call(
            RewardBatch(
                prompts=list(self.prompts),
                completions=list(self.completions),
                prompt_ids=rollout.prompt_id_lists,
                completion_ids=rollout.completion_id_lists,
                columns=self.columns,
                trainer_state=TrainerState(0, 1, 0.0),
                rollout=rollout,
            )
        )
        tokens = scores.token_rewards or [[0.0] * len(ids) for ids in rollout.completion_id_lists]
        return [None if score is None else [score, *row] for score, row in zip(scores.total, tokens, strict=True)]


def check_reward(built: Built, prompts: Sequence[Prompt] = ()) -> Iterator[Finding]:
    """The contract of a reward on texts of all kinds, and whether a score depends on the response alone."""
    texts = _Texts.of(list(prompts) or [Prompt(text, {}) for text in PROMPTS])
    missing = [name for name in built.component.columns if name not in texts.columns]
    if missing:
        near = "".join(nearest(name, INPUTS["reward"]) for name in missing)
        what = f"{built.component.title} asks for {', '.join(missing)}{near}"
        raise UsageError(
            what, built.component.where, "name an input, or give prompts that have such columns: --prompts FILE"
        )
    started = perf_counter()
    try:
        whole = texts.score(built)
    except UserError as fault:
        yield _refused(built, texts, fault)
        return
    seconds = perf_counter() - started
    yield Finding("contract", True, f"{len(whole)} texts of all kinds, {_given(whole)}")
    if built.stateful:
        yield Finding("repeatable", True, "it has a state: its scores may depend on what came before")
    else:
        order = list(reversed(range(len(COMPLETIONS))))
        again = {
            "repeatable": (lambda: texts.score(built), "the same batch twice", "take no random numbers, keep no state"),
            "order": (
                lambda: list(reversed(texts.rows(order).score(built))),
                "the same texts in another order",
                "score each completion by itself",
            ),
            "batch": (
                lambda: [texts.rows([i]).score(built)[0] for i in range(len(COMPLETIONS))],
                "each text alone",
                "score each completion by itself, not against the others",
            ),
        }
        for name, (call, what, todo) in again.items():
            yield _same(name, whole, call, what, todo)
    if built.component.columns:
        empty = _Texts(texts.prompts, texts.completions, {name: (None,) * len(COMPLETIONS) for name in texts.columns})
        try:
            empty.score(built)
            yield Finding("row without columns", True)
        except UserError as fault:
            yield Finding("row without columns", False, str(fault), "return None where a column is None")
    each = seconds / len(COMPLETIONS)
    slow = f": {128 * each:.0f} s for an iteration of 128" if each > 0.02 else ""
    yield Finding("time", True, f"{1000 * each:.2f} ms a completion{slow}")


def _refused(built: Built, texts: _Texts, fault: UserError) -> Finding:
    """A reward that failed, with the first text on which it fails alone. UsageError if it does so on the plainest one
    while an option of it says nothing."""
    for i, completion in enumerate(COMPLETIONS):
        try:
            texts.rows([i]).score(built)
        except UserError as alone:
            blank = _blank(built.component, built.options)
            if i == 0 and blank and isinstance(alone.__cause__, ValueError):
                raise _needs(built.component, blank, alone) from alone
            return Finding("contract", False, f"for the completion {completion[:20]!r}: {alone}")
    return Finding("contract", False, str(fault))


def _given(rows: Sequence[Row]) -> str:
    given = [row[0] for row in rows if row is not None]
    if not given:
        return "none of which it scores"
    none = len(rows) - len(given)
    return f"scores {min(given):.4g} to {max(given):.4g}" + (f", {none} None" if none else "")


def _same(name: str, whole: Sequence[Row], call: Callable[[], Sequence[Row]], what: str, todo: str) -> Finding:
    try:
        other = call()
    except UserError as fault:
        return Finding(name, False, f"{what}: {fault}")
    for i, (a, b) in enumerate(zip(whole, other, strict=True)):
        t = _apart(a, b)
        if t is not None:
            before, after = (None if row is None else row[t] for row in (a, b))
            at = f" to token {t - 1}" if t else ""
            found = f"{what} gives {after}{at}, and it was {before}, for {COMPLETIONS[i][:20]!r}"
            return Finding(name, False, found, todo)
    return Finding(name, True, what)


def _apart(a: Row, b: Row) -> int | None:
    """The first place at which two rows differ, None if they do not."""
    if a is None or b is None:
        return None if a is b else 0
    return next((t for t, (x, y) in enumerate(zip(a, b, strict=True)) if not _close(x, y)), None)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SAME, abs_tol=SAME)


# ---- estimators -------------------------------------------------------------------------------------------


def check_estimator(built: Built) -> Iterator[Finding]:
    """The contract of a KL estimator, advantage function or policy loss; that what is masked has no effect; that rows
    are treated alike; that the gradient is finite."""
    known = _batch()
    started = perf_counter()
    try:
        whole = _call(built, known)
    except UserError as fault:
        blank = _blank(built.component, built.options)
        if blank and isinstance(fault.__cause__, ValueError):
            raise _needs(built.component, blank, fault) from fault
        yield Finding("contract", False, str(fault))
        return
    seconds, mask = perf_counter() - started, known["mask"]
    yield Finding("contract", True, f"a finite number a token of {tuple(mask.shape)}")
    junk = {name: _junked(value, mask) for name, value in known.items()}
    wide = {name: _padded(value, mask.shape[1]) for name, value in known.items()}
    back = {name: value.flip(0) if isinstance(value, Tensor) else value for name, value in known.items()}
    alike: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor], str, str]] = {
        "padding": (junk, lambda x: x, "NaN where the mask is False", "use torch.where(mask, ...), not * mask"),
        "width": (wide, lambda x: x[:, : mask.shape[1]], "two more masked tokens", "take sums and means over the mask"),
        "order": (back, lambda x: x.flip(0), "the rows in another order", "treat all rows alike"),
    }
    for name, (given, undo, what, todo) in alike.items():
        try:
            other = undo(_call(built, given))
        except UserError as fault:
            yield Finding(name, False, f"{what}: {fault}", todo)
            continue
        off = float((other - whole)[mask].abs().max())
        yield Finding(name, off <= SAME, f"{what}: off by {off:.1e}", todo)
    if built.component.kind in ("kl", "loss"):
        yield _gradient(built, junk)
    yield Finding("time", True, f"{1000 * seconds / len(mask):.2f} ms a response")


def _gradient(built: Built, known: dict[str, Any]) -> Finding:
    """Where the loop takes it, with NaN behind the mask as padding can have."""
    leaf = known["logprobs"].detach().requires_grad_(True)
    dist = known["log_dist"].detach().requires_grad_(True)
    try:
        total = _call(built, known | {"logprobs": leaf, "log_dist": dist}, grad=True).sum()
    except UserError as fault:
        return Finding("gradient", False, f"NaN where the mask is False: {fault}", "use torch.where(mask, ...)")
    todo = "compute from logprobs or log_dist, and change no tensor in place"
    try:
        found = torch.autograd.grad(total, [leaf, dist], allow_unused=True)
    except RuntimeError as fault:  # torch's word for a result without a gradient, or one whose inputs were changed
        return Finding("gradient", False, str(fault).partition("\n")[0], todo)
    mask = known["mask"]
    kept = [g[mask] for g in found if g is not None]
    finite = bool(kept) and all(bool(g.isfinite().all()) for g in kept)
    reached = any(bool((g != 0).any()) for g in kept)
    if not finite:
        return Finding("gradient", False, "not finite on the mask", "use torch.where before exp, log and divisions")
    return Finding("gradient", reached, "finite" if reached else "0 everywhere", todo)


def _call(built: Built, known: dict[str, Any], *, grad: bool = False) -> Tensor:
    """As the loop calls and checks it: (B,R), 0 at padding."""
    if not grad and built.component.kind != "advantage":
        names = ("logprobs", "log_dist")
        known = known | {name: known[name].detach().requires_grad_(True) for name in names}
    result = built(known)
    checked: Tensor = result[0] if built.component.kind == "loss" else result
    return checked if grad else checked.detach()


def _batch() -> dict[str, Any]:
    """Six responses of up to five tokens over seven words, three groups of two; one of a single token."""
    g = generator(0, "testing", 0)
    rows, width, words = 6, 5, 7
    mask = torch.arange(width) < torch.tensor([[5], [1], [3], [5], [2], [4]])

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    dist, ref = (numbers(rows, width, words).log_softmax(-1) for _ in range(2))
    ids = torch.randint(words, (rows, width, 1), generator=g)
    taken, ref_taken = (x.gather(2, ids).squeeze(2) for x in (dist, ref))
    scores = numbers(rows)
    last = torch.arange(width) == mask.sum(dim=1, keepdim=True) - 1
    return {
        "logprobs": taken, "old_logprobs": taken + 0.1 * numbers(rows, width), "ref_logprobs": ref_taken,
        "log_dist": dist, "ref_log_dist": ref, "mask": mask, "values": numbers(rows, width), "scores": scores,
        "advantages": numbers(rows, width), "kl": numbers(rows, width).abs(),
        "rewards": torch.where(last, scores.unsqueeze(1), 0.1 * numbers(rows, width)),
        "greedy_scores": numbers(rows), "group": torch.tensor([0, 0, 1, 1, 2, 2]), "bootstrap_values": numbers(rows),
        "terminated": torch.tensor([True, True, False, True, True, False]), "beta": 0.5,
    }  # fmt: skip


def _junked(value: Any, mask: Tensor) -> Any:
    """NaN behind the mask, in whatever has a number a token."""
    if not isinstance(value, Tensor) or value.ndim < 2 or value.dtype == torch.bool:
        return value
    return torch.where(mask if value.ndim == 2 else mask.unsqueeze(2), value, torch.nan)


def _padded(value: Any, width: int) -> Any:
    """Two more tokens that nobody chose."""
    if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] != width:
        return value
    return torch.cat([value, torch.zeros_like(value[:, :2])], dim=1)


# ---- observers --------------------------------------------------------------------------------------------

# The metrics of every iteration, and a summary, as they are in a run (README: What is logged, The run directory).
METRICS = (
    *(f"objective/{name}" for name in ("kl", "entropy", "non_score_reward", "rlhf_reward", "scores", "scores_std")),
    *("objective/score_length_correlation", "reward/friendly", "policy/approxkl_avg", "policy/clipfrac_avg"),
    *("policy/outside_avg", "policy/clamped_avg", "policy/entropy_avg", "policy/first_log_ratio", "policy/grad_norm"),
    *("loss/policy_avg", "loss/value_avg", "val/ratio", "val/ratio_var", "val/clipfrac_avg", "val/num_eos_tokens"),
    *("value/explained_variance", "response/length", "response/repetition", "response/eos_rate", "kl/coef", "lr"),
    *("episode", "eps", "tokens_per_s", "time/rollout", "time/score", "time/learn", "count/updates"),
    *("count/unscored", "count/reward_errors", "count/masked_rows", "count/flat_batches"),
)
SIDE = dict.fromkeys(
    ("score_mean", "score_std", "score_p90", "length_mean", "eos_rate", "distinct_2", "distinct_share", "residual_std"),
    0.5,
)
SUMMARY = {
    "prompts": 4, "reference": SIDE, "policy": SIDE, "score_gain": 0.5, "score_gain_ci95": [0.25, 0.75],
    "win_rate": 0.5, "kl_nats_per_sequence": 1.0, "kl_coef": 0.1, "best_of_n": [{"n": 1, "kl": 0.0, "score": 0.5}],
    "seconds": {"base": 1.0, "ppo": 2.0, "evaluation": 0.5, "total": 3.5},
}  # fmt: skip


def check_observer(built: Built) -> Iterator[Finding]:
    """A run of three steps in a folder of its own, and one that goes on there: whether the observer fails, changes what
    it watches, or takes random numbers that others would have got."""
    config = load_config(registry_loader=partial(load_plugins, entry_points=False))[0]
    given: list[Any] = [_experience(), dict.fromkeys(METRICS, 0.5), copy.deepcopy(SUMMARY)]
    known, numbers = _frozen(given), _random_states()
    started = perf_counter()
    with TemporaryDirectory() as folder:
        try:
            _watch(built, config, Path(folder), 1, given)
        except PluginError as fault:
            yield Finding("contract", False, str(fault))
            return
        seconds = perf_counter() - started
        yield Finding("contract", True, f"start, {STEPS} steps, finish")
        changed = [name for name, value in _frozen(given).items() if not _equal(value, known[name])]
        yield Finding(
            "watches",
            not changed,
            f"changes {', '.join(changed)}" if changed else "changes nothing that it gets",
            "work on copies",
        )
        drawn = [name for name, state in _random_states().items() if not _equal(state, numbers.get(name, state))]
        yield Finding(
            "random numbers",
            not drawn,
            f"takes numbers of {', '.join(drawn)}" if drawn else "takes none of others",
            "use a generator of its own, such as random.Random(0)",
        )
        try:
            _watch(built.component.build({}, device="cpu"), config, Path(folder), STEPS, given)
            yield Finding("goes on", True, "started again in the same folder")
        except UserError as fault:
            yield Finding(
                "goes on", False, f"started again in the same folder: {fault}", "a resumed run starts it again"
            )
    yield Finding("time", True, f"{1000 * seconds / STEPS:.2f} ms a step")


def _watch(built: Built, config: Config, folder: Path, first: int, given: Sequence[Any]) -> None:
    """Tell an observer of a run of three steps, from `first` on."""
    experience, metrics, summary = given
    built.tell("start", config, folder)
    for step in range(first, first + STEPS):
        built.tell("step", step, experience, metrics)
    built.tell("finish", summary)


def _experience() -> Experience:
    """Of the texts of all kinds, with numbers that mean nothing: float32 (8,R)."""
    rollout = _Texts.of([Prompt(text, {"source": ""}) for text in PROMPTS]).rollout()
    g, shape, words = generator(0, "testing", 1), rollout.mask.shape, BYTE + 256
    names = ("old_logprobs", "ref_logprobs", "old_values", "kl", "rewards", "advantages", "returns")
    numbers = {name: torch.randn(shape, generator=g) for name in names}
    dist = torch.randn(*shape, words, generator=g).log_softmax(dim=-1)
    scores = torch.randn(len(rollout), generator=g)
    return Experience(rollout=rollout, scores=scores, ref_log_dist=lambda rows: dist[rows], **numbers)  # type: ignore[arg-type]


def _frozen(given: Sequence[Any]) -> dict[str, Any]:
    """Copies of all that an observer gets, by name."""
    experience, metrics, summary = given
    found: dict[str, Any] = {"metrics": dict(metrics), "summary": copy.deepcopy(summary)}
    for name, part in {"experience": experience, "experience.rollout": experience.rollout}.items():
        values = {f"{name}.{field.name}": getattr(part, field.name) for field in fields(part)}
        found |= {key: value.clone() for key, value in values.items() if isinstance(value, Tensor)}
    return found | {"experience.rollout.columns": copy.deepcopy(dict(experience.rollout.columns))}


def _random_states() -> dict[str, Any]:
    """Of the generators that everybody shares."""
    found: dict[str, Any] = {"random": random.getstate(), "torch": torch.get_rng_state()}
    if numpy := sys.modules.get("numpy"):
        name, keys, *rest = numpy.random.get_state()
        found["numpy.random"] = (name, keys.tobytes(), *rest)
    return found


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)
