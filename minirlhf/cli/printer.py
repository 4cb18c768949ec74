"""The printer: events as plain lines, progress to stderr and results to stdout, or one JSON object a line.

Not here: the choice between printer and panel (ui.py), the texts that both share (lines.py).
"""

import sys
from time import monotonic
from typing import Any

from minirlhf.cli.fit import fitting, table, wrapped
from minirlhf.cli.lines import or_dash, printable, sft_line, shown_rate, stage_line, tell
from minirlhf.cli.stdio import columns
from minirlhf.store.jsonl import json_line

EVERY = 1.0  # seconds between two progress lines of one stage: a pipe or a log gets a readable number of them


class Printer:
    """Event sink that prints. as_json: every event to stdout as one line of JSON; quiet: results and warnings only."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self._as_json, self._quiet, self._out = as_json, quiet, sys.stdout
        self._last = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        if self._as_json:
            print(json_line(event), file=self._out, flush=True)
            return
        handler = getattr(self, f"_{event['event']}", None)
        if handler is not None:
            handler(event)

    def _line(self, text: str) -> None:
        """Print lines of progress, wrapped to the terminal; a path alone on its line stays whole, to be copied."""
        for line in text.split("\n") if not self._quiet else ():
            tell(wrapped(line, columns(sys.stderr), hang=12) if " " in line.strip() else line)

    def _due(self, done: bool) -> bool:
        if not done and monotonic() - self._last < EVERY:
            return False
        self._last = monotonic()
        return True

    def _run_started(self, e: dict[str, Any]) -> None:
        self._line(
            f"minirlhf {e['minirlhf']}, torch {e['torch']}, {e['device']}, "
            f"{e['threads']} thread{'' if e['threads'] == 1 else 's'}: "
            f"preset {e['preset']}, seed {e['seed']}\n{e['run_dir']}"
        )

    def _resumed(self, e: dict[str, Any]) -> None:
        self._line(
            f"resumed     after step {e['step']}: {e['from']}" if e["from"] else "resumed     from the beginning"
        )

    def _already_finished(self, e: dict[str, Any]) -> None:
        self._line(
            "this run is finished: --set ppo.iterations=N goes on with it, `minirlhf evaluate` evaluates it again"
        )
        print(e["run_dir"])

    def _warning(self, e: dict[str, Any]) -> None:
        tell(f"warning: {printable(e['message'])}")

    def _stage(self, e: dict[str, Any]) -> None:
        self._line(stage_line(e))

    def _pretrain(self, e: dict[str, Any]) -> None:
        if self._due(e["step"] == e["steps"]):
            speed = shown_rate(e["tokens_per_s"])
            self._line(f"  step {e['step']:5d}/{e['steps']}  loss {e['loss']:.3f}  lr {e['lr']:.1e}  {speed}")

    def _sft(self, e: dict[str, Any]) -> None:
        if self._due(e["step"] == e["steps"]):
            self._line(f"  step {e['step']:5d}/{e['steps']}  loss {e['loss']:.3f}")

    def _sft_finished(self, e: dict[str, Any]) -> None:
        self._line(f"sft         made: {sft_line(e)}\n            {e['directory']}")

    def _reward_scale(self, e: dict[str, Any]) -> None:
        label = printable(e["label"])
        self._line(f"reward      {label}: normalised by {e['mean']:+.3f} and {e['std']:.3f}, those of the reference")

    def _reward_model(self, e: dict[str, Any]) -> None:
        if "heldout_accuracy" in e:
            self._line(f"  step {e['step']:5d}  loss {e['loss']:.3f}  held-out accuracy {e['heldout_accuracy']:.3f}")

    def _reward_model_finished(self, e: dict[str, Any]) -> None:
        for title, value in reward_model_lines(e["report"]):
            print(wrapped(value, columns(), f"{title:<36} "))
        print(
            "\nwhen it says     pairs   it is right\n"
            + "\n".join(
                f"{row['stated']:>11.0%} {row['pairs']:>9}   {row['right']:>11.0%}"
                for row in e["report"]["reliability"]
            )
        )
        print(f"\n{e['directory']}")

    def _step(self, e: dict[str, Any]) -> None:
        if self._due(e["step"] == e["iterations"]):
            from minirlhf.report.page import number

            share = [f"F {e['exact/optimality']:.3f}"] if "exact/optimality" in e else []
            score, kl, entropy, length = (
                number(e[name], form)
                for name, form in (
                    *(("objective/scores", "+.3f"), ("objective/kl", ".2f")),
                    *(("policy/entropy_avg", ".2f"), ("response/length", ".1f")),
                )
            )
            first = [f"  iteration {e['step']:4d}/{e['iterations']}", f"score {score}", f"kl {kl:>6}"]
            clipped = f"clipped {number(e.get('policy/clipfrac_avg', 0.0), '.2f')}"
            *rest, speed = f"entropy {entropy}", f"length {length:>5}", clipped, shown_rate(e["tokens_per_s"])
            fields = [*first, *rest, speed, *share]
            self._line(fitting(fields, columns(sys.stderr), [speed, *reversed(rest)]))

    def _run_finished(self, e: dict[str, Any]) -> None:
        print_evaluation(e, e["samples"])
        seconds = e["seconds"]
        stages = ", ".join(f"{name.replace('_', ' ')} {value:.0f} s" for name, value in seconds.items())
        print(f"\n{stages}\n{e['report']}\n{e['run_dir']}")


def reward_model_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows (title, value) of the report of a reward model."""
    interval = " (95 % interval {:.3f} to {:.3f})".format(*report["accuracy_ci95"]) if report["accuracy_ci95"] else ""
    ties = f", {report['ties']} of them ties" if report.get("ties") else ""
    floor = f" (a perfectly calibrated model: {report['ece_floor']:.3f})" if "ece_floor" in report else ""
    ceiling, decided = [], bool(report.get("decided_when_to_stop"))
    if "ceiling" in report:
        share = f"{or_dash(report['of_ceiling'], '.0%')} (ceiling {or_dash(report['ceiling'])})"
        ceiling = [("of what the label noise allows", share)]
    return [
        ("held-out comparisons", f"{report['pairs']}{ties}{', which also decided when to stop' * decided}"),
        ("accuracy", f"{or_dash(report['accuracy'])}{interval}"),
        *ceiling,
        ("calibration error (ECE)", f"{report['ece']:.3f}{floor}"),
        ("margin, mean", f"{report['margin_mean']:+.2f}"),
        ("score against length, correlation", f"{report['length_correlation']:+.2f}"),
        ("accuracy of preferring the longer", or_dash(report["longer_wins"])),
    ]


def with_interval(summary: dict[str, Any], name: str) -> str:
    """Text of a gain of the evaluation, - if it was not measured, with its 95 % interval if there is one."""
    from minirlhf.report.page import number

    ends = summary[f"{name}_ci95"]
    interval = "" if ends is None else f" (95 % interval {ends[0]:+.3f} to {ends[1]:+.3f})"
    return number(summary[name], "+.3f") + interval


def print_numbers(rows: list[tuple[str, ...]], width: int | None) -> None:
    """Print a table with its heads first: a title of 28 columns and numbers of 10; folded on a narrower terminal."""
    if width is None or width >= 28 + 11 * (len(rows[0]) - 1):
        for title, *numbers in rows:
            print(f"{title:<28}" + "".join(f" {text:>10}" for text in numbers))
    else:
        print("\n".join(table(rows, width)))


def print_objective(summary: dict[str, Any]) -> None:
    """Print the true score's gain, J of reference, best-of-n and policy, and what the run did not beat."""
    from minirlhf.report.of_objective import (
        objective_about,
        objective_rows,
        objective_sentences,
        true_score_sentences,
    )
    from minirlhf.report.page import number

    width = columns()
    for line in true_score_sentences(summary):
        print(wrapped(line, width, hang=2))
    if "exact" not in summary and (rows := objective_rows(summary)):
        print(f"\n{wrapped(objective_about(summary), width)}")
        measured = ((what, number(s, "+.3f"), number(kl, ".2f"), number(j, "+.3f")) for what, s, kl, j in rows)
        print_numbers([("", "score", "KL, nats", "J"), *measured], width)
    for sentence in objective_sentences(summary):
        print(wrapped(sentence, width))


def print_evaluation(summary: dict[str, Any], samples: list[dict[str, Any]]) -> None:
    """Print samples with both completions (at most 110 columns), then the measures of reference and policy."""
    from minirlhf.report.of_run import sides
    from minirlhf.report.page import number

    width = min(110, columns() or 110)
    for row in samples:
        print("\n" + wrapped(f"{printable(row['prompt'])} ...", width))
        for side in ("reference", "policy"):
            score = row[f"{side}_score"]
            mark = f"{side:>9} {number(score, '+.2f'):>5}  "
            print(wrapped(printable(row[side].strip()) or "(nothing)", width, mark))
    print()
    measured = ((title, number(before, form), number(after, form)) for title, before, after, form in sides(summary))
    pairs = "held-out prompts" if "exact" not in summary else "pairs of responses"
    print_numbers([(f"{summary['prompts']} {pairs}", "reference", "policy"), *measured], columns())
    some = f" on the {summary['score_pairs']} where both sides have a score"
    of_these = "prompts" if "exact" not in summary else "pairs"
    gained = (
        f"score gain {with_interval(summary, 'score_gain')}{some * (0 < summary['score_pairs'] < summary['prompts'])}, "
        f"better on {number(summary['win_rate'], '.0%')} of the {of_these} ({summary['ties']} ties count half), "
        f"KL {summary['kl_nats_per_sequence']:.2f} nats per response"
    )
    print(wrapped(gained, columns(), hang=2))
    print_objective(summary)
    if "exact" in summary:
        e = summary["exact"]
        share = "nothing can be gained" if e["optimality"] is None else f"optimality F {e['optimality']:.4f}"
        reached = (
            f"{share}: J = score - {e['beta']:g} KL is {e['objective']:.4f} of at most {e['best']:.4f} "
            f"(score {e['reward']:.4f}, KL {e['kl']:.4f} nats)"
        )
        print(wrapped(reached, columns(), hang=2))
        if e["changed"]:
            other = f"which is not what this run optimised ({', '.join(e['changed'])}): its best F may be below 1"
            print(wrapped(other, columns(), hang=2))
