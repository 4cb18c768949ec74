"""For the authors of plugins: is a component what the loop expects, on batches that find out what usually goes wrong?

    from minirlhf.testing import assert_sound

    def test_it():
        assert_sound("reward", brevity, target=12)

The same checks as `minirlhf plugins check`. Rewards get texts of all kinds (empty, long, in any writing), in one batch,
in another order and one at a time; estimators get ragged masks with NaN behind them. Not here: whether an estimator
estimates what it should (`minirlhf audit`).
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from minirlhf.components import Built, check_loss, check_tensor, read_component
from minirlhf.errors import UserError
from minirlhf.scoring import RewardModels, TrainerState
from minirlhf.streams import generator
from minirlhf.text.corpus import Prompt

PROMPTS = ("I bought this kettle", "", "你好", "A question?\nWith two lines.")
COMPLETIONS = (
    " and it is good.", "", " ", " 茶很好。", " naïve café 👩‍👩‍👧 e\u0301 \u202eabc", " a" * 5000, "\n\t\0",
    " <eos> </s> [INST] %s {0}",
)  # fmt: skip
SAME = 1e-5  # relative: how far two results may be apart and still be one


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it holds, what was found, and what to do where it does not hold."""

    name: str
    holds: bool
    found: str = ""
    todo: str = ""


def assert_sound(kind: str, function: Callable[..., Any], *, prompts: Sequence[Prompt] = (), **options: Any) -> None:
    """AssertionError with every check that a component (reward, kl, advantage, loss) does not pass.

    prompts: with the columns that a reward asks for. options: as the configuration would give them.
    """
    path = getattr(inspect.getmodule(function), "__file__", None) or "a test"
    component = read_component(kind, getattr(function, "__name__", "it"), "the plugin under test", path, function)
    bad = [f for f in check(component.build(options, device="cpu"), prompts) if not f.holds]
    assert not bad, "\n".join(f"{f.name}: {f.found}; {f.todo}" for f in bad)


def check(built: Built, prompts: Sequence[Prompt] = ()) -> Iterator[Finding]:
    """All checks of its kind, in order; those that need the first one to hold are left out where it does not."""
    return check_reward(built, prompts) if built.component.kind == "reward" else check_estimator(built)


# ---- rewards ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Texts:
    """Prompts and completions, one each a row, with the columns of the rows."""

    prompts: tuple[str, ...]
    completions: tuple[str, ...]
    columns: Mapping[str, tuple[Any, ...]]

    def rows(self, order: Sequence[int]) -> "_Texts":
        columns = {name: tuple(values[i] for i in order) for name, values in self.columns.items()}
        return _Texts(tuple(self.prompts[i] for i in order), tuple(self.completions[i] for i in order), columns)

    def score(self, built: Built) -> list[float | None]:
        ids = [[3 + byte for byte in text.encode()[:64]] or [2] for text in self.completions]
        models = RewardModels([(built.component.name, 1.0, built)])
        scores = models.score(
            prompts=list(self.prompts),
            completions=list(self.completions),
            prompt_ids=[[1, *(3 + byte for byte in text.encode())] for text in self.prompts],
            completion_ids=ids,
            columns=self.columns,
            trainer_state=TrainerState(0, 1, 0.0),
        )
        return scores.total


def check_reward(built: Built, prompts: Sequence[Prompt]) -> Iterator[Finding]:
    """The contract of a reward on texts of all kinds, and whether a score depends on the response alone."""
    rows = list(prompts) or [Prompt(text, {}) for text in PROMPTS]
    picked = [rows[i % len(rows)] for i in range(len(COMPLETIONS))]
    names = sorted({name for row in rows for name in row.columns})
    columns = {name: tuple(row.columns.get(name) for row in picked) for name in names}
    texts = _Texts(tuple(row.text for row in picked), COMPLETIONS, columns)
    missing = [name for name in built.component.columns if name not in names]
    if missing:
        yield Finding("columns", False, f"it asks for {', '.join(missing)}", "give prompts that have them (--prompts)")
        return
    started = perf_counter()
    try:
        whole = texts.score(built)
    except UserError as fault:
        yield Finding("contract", False, str(fault), "see the message")
        return
    yield Finding("contract", True, f"{len(whole)} texts of all kinds, {_given(whole)}")
    seconds = perf_counter() - started
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
        empty = _Texts(texts.prompts, texts.completions, {name: (None,) * len(COMPLETIONS) for name in names})
        try:
            empty.score(built)
            yield Finding("row without columns", True)
        except UserError as fault:
            yield Finding("row without columns", False, str(fault), "return None where a column is None")
    yield Finding("time", True, f"{1000 * seconds / len(COMPLETIONS):.2f} ms a completion")


def _given(scores: Sequence[float | None]) -> str:
    given = [score for score in scores if score is not None]
    if not given:
        return "none of which it scores"
    none = len(scores) - len(given)
    return f"scores {min(given):.4g} to {max(given):.4g}" + (f", {none} None" if none else "")


def _same(
    name: str, whole: Sequence[float | None], call: Callable[[], Sequence[float | None]], what: str, todo: str
) -> Finding:
    try:
        other = call()
    except UserError as fault:
        return Finding(name, False, f"{what}: {fault}", "see the message")
    for i, (a, b) in enumerate(zip(whole, other, strict=True)):
        if (a is None) != (b is None) or (a is not None and b is not None and not _close(a, b)):
            return Finding(name, False, f"{what} scores {b}, and it was {a}, for {COMPLETIONS[i][:20]!r}", todo)
    return Finding(name, True, what)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SAME, abs_tol=SAME)


# ---- estimators -------------------------------------------------------------------------------------------


def check_estimator(built: Built) -> Iterator[Finding]:
    """The contract of a KL estimator, advantage function or policy loss; that what is masked has no effect; that rows
    are treated alike; that the gradient is finite."""
    known = _batch()
    try:
        whole = _call(built, known)
    except UserError as fault:
        yield Finding("contract", False, str(fault), "see the message")
        return
    mask = known["mask"]
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
    checked = check_loss(built, result, known["mask"], known)[0] if built.component.kind == "loss" else check_tensor(
        built, result, known["mask"], known
    )  # fmt: skip
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
