"""minirlhf label: the dialogue with the person who judges. Pairs and their file are in studies/labelling.py."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from minirlhf.cli.fit import wrapped
from minirlhf.cli.lines import printable, tell
from minirlhf.cli.options import some_options
from minirlhf.cli.printer import Printer
from minirlhf.cli.stdio import columns

if TYPE_CHECKING:
    from minirlhf.studies.labelling import LabelFile, PairSampler, PairToJudge


@click.command("label")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE.jsonl", help="Goes on in it.")
@click.option("--from", "side", type=click.Choice(["policy", "reference"]), default="reference", show_default=True)
@click.option("--prompts", metavar="FILE", help="Prompts of your own instead of the run's.")
@some_options("sets")
@click.option("-n", "count", type=click.IntRange(min=1), metavar="N", help="Stop after so many answers.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def command(
    run: Path, out: Path, side: str, prompts: str | None, sets: tuple[str, ...], count: int | None, seed: int
) -> None:
    """Judge pairs of completions of a finished RUN: which is better? One JSON line each, for `reward-model`.

    Answer l(eft), r(ight), t(ie), s(kip), u(ndo) or q(uit), and Enter. The same command goes on where it stopped.
    """
    from minirlhf.cli.options import check_folder
    from minirlhf.store.lock import locked

    check_folder(out)
    file = Path(os.path.realpath(out))  # the file has one lock, whatever links lead to it
    with locked(file.with_name(f".{file.name}.lock"), Printer(), of=file):
        total = label(run, file, side, prompts, count, seed, sets)
    print(f"{total} comparisons in {out}")


def label(
    run: Path, out: Path, side: str, prompts: str | None, count: int | None, seed: int, sets: tuple[str, ...]
) -> int:
    """Open the run and the file, and ask until `count` answers are given; returns the rows of the file."""
    from minirlhf.cli.options import resolve_config
    from minirlhf.pipeline.saved import config_file

    config, _ = resolve_config(preset=config_file(run), rewards=(), sets=sets, plugins=(), device=None, kinds=())

    from minirlhf.pipeline.build import set_up
    from minirlhf.pipeline.saved import open_run, prompts_to_use
    from minirlhf.studies.labelling import LabelFile, PairSampler

    file = LabelFile(out)
    saved = open_run(run, config, set_up(config.run))
    policy = saved.policy if side == "policy" else saved.reference.policy
    use, note = prompts_to_use(config, saved.tokenizer, prompts)
    if note:
        tell(f"warning: {printable(note)}")
    pairs = PairSampler(policy, saved.tokenizer, use, config.sampler.max_new_tokens, seed)
    ask_for_pairs(pairs, file, count)
    return len(file.rows)


def ask_for_pairs(pairs: "PairSampler", file: "LabelFile", count: int | None) -> None:
    """Show pairs and write the answers into the file, `count` of them or until the person quits."""
    index, answered, skipped = file.next_index, 0, list[int]()
    while count is None or answered < count:
        shown = pairs(index)
        answer = ask(shown, len(file.rows))
        if answer == "quit":
            break
        if answer == "undo" and skipped:
            index = skipped.pop()
            continue
        if answer == "undo":
            back = file.undo()
            index, answered = (index, answered) if back is None else (back, max(0, answered - 1))
            continue
        if answer == "skip":
            skipped.append(shown.index)
        else:
            file.add(shown.judged(answer))
            answered, skipped = answered + 1, []
        index = shown.index + 1


def ask(shown: "PairToJudge", done: int) -> str:
    """Show a pair and ask until the answer is valid; returns it in full. End of input counts as quit."""
    from minirlhf.studies.labelling import ANSWERS

    width = min(100, columns(sys.stderr) or 100)
    tell("\n" + wrapped(f"{done} done. {printable(shown.prompt)} ...", width))
    for name, text in (("left", shown.left), ("right", shown.right)):
        tell(wrapped(printable(text.strip()), width, f"{name:>6}  "))
    while True:
        try:
            answer = click.prompt("l r t s u q", prompt_suffix=": ", err=True).strip().lower()
        except click.Abort:
            return "quit"
        if answer[:1] in ANSWERS and ANSWERS[answer[:1]].startswith(answer):
            return ANSWERS[answer[:1]]
        tell("left, right, tie, skip, undo or quit")
