"""minirlhf sample: completions of a prompt by stages of a run, with their scores, printed."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minirlhf.cli.fit import wrapped
from minirlhf.cli.lines import printable, tell
from minirlhf.cli.options import FiniteRange, plugin_option
from minirlhf.cli.stdio import columns

if TYPE_CHECKING:
    from minirlhf.components.registry import Registry
    from minirlhf.config.schema import Config
    from minirlhf.models.rollout import Rollout
    from minirlhf.text.tokenizer import Conversation

COLDEST = 1e-3  # lowest temperature: logits over less would overflow; 0 means greedy
NARROWEST = 24  # columns that each side needs, to be shown side by side
SIDES = ("base", "sft", "reference", "policy")

ScoresByLabel = Mapping[str, Sequence[float | None]]  # label of a reward -> its score of each completion


@click.command("sample")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("prompt", required=False, metavar="[PROMPT|-]")
@click.option("-n", "count", type=click.IntRange(1, 10000), default=1, show_default=True, help="Completions.")
@click.option(
    "--from", "sides", type=click.Choice(SIDES), multiple=True, default=["policy"], show_default=True,
    help="Stage of the run, repeatable: side by side.",
)  # fmt: skip
@click.option(
    "--reward", "rewards", multiple=True, metavar="NAME", help="Show what a reward gives, unweighted; repeatable."
)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help='Such as rewards.keywords.words=["tea"]')
@plugin_option
@click.option("--temperature", type=FiniteRange(0), help="0 = greedy; left out: the run's own.")
@click.option("--top-k", type=click.IntRange(0), default=0, help="Only the K most likely tokens; 0 = all.")
@click.option("--top-p", type=FiniteRange(0, 1, min_open=True), default=1.0, help="Only the nucleus of mass P.")
@click.option("--min-p", type=FiniteRange(0, 1), default=0.0, help="Only tokens over P times the most likely.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest completion; left out: the run's own.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", metavar="D", help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a completion.")
def command(
    run: Path,
    prompt: str | None,
    sides: tuple[str, ...],
    rewards: tuple[str, ...],
    sets: tuple[str, ...],
    plugins: tuple[str, ...],
    device: str | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Let the policy of a finished RUN continue PROMPT, or several stages of it with the same random numbers.

    base is what pretraining made, sft what demonstrations made of it, reference what KL is measured against (one of
    these two). Without PROMPT it starts from nothing; - reads it from standard input; a conversation is given as JSON.
    The cuts (top-k, top-p, min-p) exist only here: a run never uses them.
    """
    from minirlhf.cli.options import resolve_config
    from minirlhf.pipeline.saved import config_file
    from minirlhf.text.boundary import ending_note
    from minirlhf.text.chat import typed_messages, typed_prompt

    if how["temperature"] is not None and 0 < how["temperature"] < COLDEST:
        raise click.BadParameter(f"{how['temperature']} is below {COLDEST}; 0 is greedy", param_hint="--temperature")
    typed = read_prompt(prompt or "")
    text, spoken = typed_prompt(typed, "PROMPT"), typed_messages(typed, "PROMPT")
    config, registry = resolve_config(
        preset=config_file(run), rewards=rewards, sets=sets, plugins=plugins, device=device,
        kinds=("reward",) if rewards or plugins else (),
    )  # fmt: skip
    note = ending_note([text])
    if note:
        tell(f"warning: {printable(note)}")
    rollouts, scores = sampled(
        run, config, registry, text, tuple(dict.fromkeys(sides)), spoken=spoken, scored=bool(rewards), **how
    )

    if as_json:
        show_json(text, rollouts, scores)
    elif len(rollouts) == 1:
        ((side, rollout),) = rollouts.items()
        show_lines(text, rollout, scores[side], chat=config.corpus.chat)
    else:
        show_sides(text, rollouts, scores)
    if not as_json and how["count"] > 1:
        show_means(scores)


def sampled(
    run: Path,
    config: "Config",
    registry: "Registry",
    text: str,
    sides: tuple[str, ...],
    *,
    spoken: "Conversation | None" = None,
    scored: bool,
    count: int,
    temperature: float | None,
    top_k: int,
    top_p: float,
    min_p: float,
    max_new_tokens: int | None,
    seed: int,
) -> tuple[dict[str, "Rollout"], dict[str, ScoresByLabel]]:
    """Rollout of each side of a run, from the same random numbers, and its scores by each reward if `scored`.

    InputError if the prompt leaves no room for a completion.
    """
    from dataclasses import replace

    from minirlhf.errors import InputError
    from minirlhf.models.generate import PromptBatch, generate
    from minirlhf.pipeline.build import build_rewards, filled_rewards, set_up
    from minirlhf.pipeline.saved import open_run, side_of
    from minirlhf.rewards.call import call_rewards
    from minirlhf.streams import generator

    device = set_up(config.run)
    saved = open_run(run, config, device)  # first: it notes where the base is, on which rewards may stand
    rewarded = filled_rewards(config)[0] if scored else {}
    if scored:
        build_rewards(rewarded, registry, device).check_columns(())
    policies = {side: side_of(saved, config, side) for side in sides}
    sampler = replace(saved.policy.sampler, top_k=top_k, top_p=top_p, min_p=min_p)
    if temperature is not None:
        sampler = replace(sampler, temperature=temperature)
    batch = PromptBatch.build([text], [{}], saved.tokenizer, spoken=[spoken], responses=count, device=device)
    room = config.model.max_positions - batch.ids.shape[1]
    if room < 1:
        raise InputError(f"the prompt has {batch.ids.shape[1]} tokens, the model reads {config.model.max_positions}")
    longest = min(room, max_new_tokens or config.sampler.max_new_tokens)
    rollouts, scores = dict[str, "Rollout"](), dict[str, ScoresByLabel]()
    for side, policy in policies.items():
        random = generator(seed, "sample", 0)
        rollouts[side] = rollout = generate(
            policy, batch, saved.tokenizer, max_new_tokens=longest, generator=random, sampler=sampler
        )
        scores[side] = {}
        if scored:  # built anew for each side: a stateful reward would remember the sides before
            models, step = build_rewards(rewarded, registry, device), config.ppo.iterations
            scores[side] = call_rewards(models, rollout, step, config, saved.tokenizer).by_label
    return rollouts, scores


def show_json(text: str, rollouts: Mapping[str, "Rollout"], scores: Mapping[str, ScoresByLabel]) -> None:
    """Print one line of JSON for each completion; the n-th ones of all sides stand together."""
    from minirlhf.store.jsonl import json_line

    ended = {side: rollout.terminated.tolist() for side, rollout in rollouts.items()}
    for i in range(len(next(iter(ended.values())))):
        for side, rollout in rollouts.items():
            about = {"prompt": text, "completion": rollout.completions[i], "from": side, "terminated": ended[side][i]}
            given = {label: values[i] for label, values in scores[side].items()}
            print(json_line({**about, "scores": given} if given else about))


def show_lines(text: str, rollout: "Rollout", given: ScoresByLabel, *, chat: bool = False) -> None:
    """Print one line for each completion: its scores, the prompt, the completion; on a terminal it is wrapped.

    chat: the completion answers the prompt, so that a line break stands between them (its escape, in a pipe).
    """
    apart, width = "\n" if chat and text else "", columns()
    for i, completion in enumerate(rollout.completions):
        if apart and width is not None:
            print(wrapped(marks(given, i) + printable(text), width, hang=2))
            print(wrapped(printable(completion), width, "  "))
        else:
            print(wrapped(marks(given, i) + printable(text + apart + completion), width, hang=2))


def show_sides(text: str, rollouts: Mapping[str, "Rollout"], scores: Mapping[str, ScoresByLabel]) -> None:
    """Print the prompt, then the n-th completions of all sides: as a table, or as lines if the terminal is narrow."""
    if text:
        print(wrapped(f"{printable(text)} ...", columns()))
    width = columns()
    shown = {
        side: [(marks(scores[side], i), printable(c.strip()) or "(nothing)") for i, c in enumerate(rollout.completions)]
        for side, rollout in rollouts.items()
    }
    if width is not None and width >= NARROWEST * len(shown):
        show_table(shown, width)
        return
    for row in zip(*shown.values(), strict=True):
        print()
        for side, (mark, completion) in zip(shown, row, strict=True):
            print(wrapped(mark + completion, width, f"{side:>9}  "))


def show_table(shown: Mapping[str, list[tuple[str, str]]], width: int) -> None:
    """Print a table with a column a side and a row a completion. Text, unlike str, is never parsed as markup."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, leading=1, expand=True)
    for side in shown:
        table.add_column(side, ratio=1)
    for row in zip(*shown.values(), strict=True):
        table.add_row(*(Text(f"{mark.rstrip()}\n{completion}".lstrip()) for mark, completion in row))
    Console(width=width).print(table)


def show_means(scores: Mapping[str, ScoresByLabel]) -> None:
    """Print one line for each scored side: mean score of each reward over the completions that it scored."""
    if any(scores.values()):
        print()
    for side, given in ((side, given) for side, given in scores.items() if given):
        known = {label: [value for value in values if value is not None] for label, values in given.items()}
        means = {label: [sum(values) / len(values) if values else None] for label, values in known.items()}
        print(wrapped(f"{marks(means, 0)}mean of {len(next(iter(given.values())))}", columns(), f"{side:>9}  "))


def marks(scores: ScoresByLabel, i: int) -> str:
    """Scores of completion i with their labels and trailing space; empty without rewards."""
    values = {printable(label): values[i] for label, values in scores.items()}
    return "".join(f"{label} {'-' if value is None else f'{value:+.2f}'}  " for label, value in values.items())


def read_prompt(typed: str) -> str:
    """Read a prompt as UTF-8, whatever the locale (InputError if it is none): as typed, or for - from stdin.

    Trailing line ends of stdin are left out.
    """
    from minirlhf.errors import InputError

    try:
        if typed != "-":
            return os.fsencode(typed).decode("utf-8")
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as fault:
        where = "standard input" if typed == "-" else "PROMPT"
        raise InputError(f"the prompt is not UTF-8 (byte {fault.start + 1})", where, "give it as UTF-8") from None
