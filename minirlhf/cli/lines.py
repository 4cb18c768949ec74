"""Lines of text about events, shared by the printer and the panel, and the line to stderr.

Model output is untrusted: `printable` escapes control characters, and all text from models, files or plugins passes
through it. Not here: which events are shown, and when (printer.py, panel.py).
"""

import errno
import os
import sys
from collections.abc import Iterator
from typing import Any


def printable(text: str) -> str:
    """Text on one line, with control characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def tell(text: str) -> None:
    """Print a line to stderr, flushed. A terminal that was closed is ignored: the SIGHUP it sends lets the run save."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError as fault:
        if fault.errno != errno.EIO:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def warn(event: dict[str, Any]) -> None:
    """Print the warning of an event to stderr, for commands that show no other events."""
    if event["event"] == "warning":
        tell(f"warning: {event['message']}")


def or_dash(value: float | None, form: str = ".3f") -> str:
    """Number in this format; - for one that was not measured."""
    return "-" if value is None else format(value, form)


def stage_line(e: dict[str, Any]) -> str:
    """One or more lines of a `stage` event: its name in twelve columns, then its work or what it reused."""
    below = f"\n{'':12}"
    if e["stage"] == "pretrain":
        return f"pretrain    {e['documents']:,} documents, {e['steps']} steps"
    if e["stage"] == "base":
        source = "reused" if e["reused"] else "made"
        if "kl" in e:  # the base of an exact problem, fitted to its reference table
            return f"base        {source}: {e['parameters']:,} parameters, KL {e['kl']:.1e} nats to the table"
        if "family" in e:
            what = f"{e['family']}, {e['parameters']:,} parameters, {e['dtype']}, read in {e['seconds']:.1f} s"
            return f"base        {e['model']}: {what}{below}{e['directory']}"
        return (
            f"base        {source}: {e['parameters']:,} parameters, held-out loss {e['heldout_loss']:.3f} "
            f"nats/token, {e['tokens']:,} tokens in {e['seconds']:.0f} s{below}{e['directory']}"
        )
    if e["stage"] == "sft" and e["reused"]:
        return f"sft         reused: {sft_line(e)}{below}{e['directory']}"
    if e["stage"] == "sft":
        return f"sft         {e['demonstrations']:,} demonstrations, {e['heldout']:,} held out, {e['steps']} steps"
    if e["stage"] == "reward_model" and e["reused"]:
        return f"reward model reused: held-out accuracy {or_dash(e['report']['accuracy'])}{below}{e['directory']}"
    if e["stage"] == "reward_model":
        several = f", {e['ensemble']} models" if e["ensemble"] > 1 else ""
        watched = f"{e['watched']:,} more decide when to stop, {e['heldout']:,} are held out for the report"
        both = f"{e['heldout']:,} are held out, to decide when to stop and for the report"
        return f"reward model {e['pairs']:,} comparisons, {watched if e['watched'] else both}{several}"
    if e["stage"] == "ppo":
        about = f"ppo         {e['iterations']} iterations of {e['responses']} responses"
        return below.join([about, *e["notes"]])
    return f"evaluation  {e['prompts']} held-out prompt{'s' * (e['prompts'] != 1)}, reference and policy"


def sft_line(e: dict[str, Any]) -> str:
    """Held-out loss before and after SFT, tokens and seconds."""
    return (
        f"held-out loss {e['heldout_loss_before']:.3f} -> {e['heldout_loss']:.3f} nats/token of the completions, "
        f"{e['tokens']:,} tokens in {e['seconds']:.0f} s"
    )


PARTS = {  # of a plan: their names for people
    "baseline": "Python and torch", "weights": "weights", "reference": "reference", "adapters": "adapters and heads",
    "optimizer": "optimizer", "cache": "cache of keys and values", "rollout_work": "sampling", "states": "states",
    "score_pass": "scoring, the blocks", "score_logits": "scoring, logits", "gradients": "gradients",
    "activations": "activations", "learn_logits": "learning, logits", "backward_work": "learning, one block",
    "heap": "heap of malloc",
}  # fmt: skip


def memory_lines(e: dict[str, Any]) -> Iterator[str]:
    """Lines of an event `memory`: bytes by what they are for, by stage, and the peak beside what the device has."""
    for name, title in PARTS.items():
        if e["parts"][name]:
            yield f"{title:<28}{gigabytes(e['parts'][name])}"
    for stage, size in e["stages"].items():
        yield f"while it runs {stage:<14}{gigabytes(size)}"
    has = "" if e["available"] is None else f" of {gigabytes(e['available']).strip()} on {e['device']}"
    yield f"peak, calculated            {gigabytes(e['peak'])}{has}"
    if e["fits"] is False:
        yield "This does not fit: lower ppo.micro_batch_size, or set lora.rank, model.dtype or ppo.recompute."


def shown_rate(tokens_per_s: float) -> str:
    """Tokens a second as they are shown: `1,234 tokens/s`, below ten with a decimal."""
    return f"{tokens_per_s:,.{0 if tokens_per_s >= 10 else 1}f} tokens/s"


def gigabytes(size: int) -> str:
    """Bytes as GB with three decimals, right-aligned in 12 columns."""
    return f"{size / 1e9:9.3f} GB"
