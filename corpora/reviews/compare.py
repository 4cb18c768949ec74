#!/usr/bin/env python3
"""Writes what people said about reviews: demonstrations, and comparisons of two continuations of one opening.

    python corpora/reviews/compare.py [--out DIR]        (needs minirlhf installed: the judge reads text as it does)

Both sides are written by the grammar of generate.py; some are spoilt (a sentence said again and again, or cut short),
so that there is something to learn about that, too. Of the two that were written for a demonstration, neither of them
spoilt, the better one is kept. The judge is a hidden true score of the text, that of minirlhf/true_score.py: sentiment,
aspects named, no repetition, a length near 30 words. Of comparisons he errs: the better side is chosen with probability
sigmoid(difference / NOISE). The difference itself is in the held-out file only, for the report.
"""

import argparse
import copy
import importlib.util
import json
import math
import random
import sys
from pathlib import Path
from types import ModuleType

from minirlhf.true_score import true_scores

SEED = 20240608
PAIRS = 6_000
HELDOUT_PAIRS = 1_200
DEMONSTRATIONS = 2_000
NOISE = 0.6  # score units
SPOILT = 20  # percent of the sides


def grammar() -> ModuleType:
    """generate.py, which stands beside this file."""
    spec = importlib.util.spec_from_file_location("reviews_grammar", Path(__file__).with_name("generate.py"))
    if spec is None or spec.loader is None:
        raise ImportError("generate.py is not there")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def continuation(g: ModuleType, rng: random.Random, opened: object, opening: object) -> str:
    """A review with this opening, of a sentiment of its own."""
    review = copy.deepcopy(opened)
    review.rng, review.sentiment = rng, g.weighted(rng, g.SENTIMENTS)
    review.negative = review.sentiment == "negative"
    count, hits, most = g.amounts_of(rng, review)
    first, done = g.first_sentence(review, opening, hits, needed=hits > most * (count - 1))
    if review.sentiment == "neutral":
        body = g.neutral_body(review, count - 1)
    else:
        body = g.evaluative_body(review, count - 1, hits - done, most)
    return " ".join([first, *body])


def spoilt(rng: random.Random, text: str) -> str:
    """The last sentence said again and again, or everything behind the first dropped."""
    sentences = text.split(". ")
    if rng.random() < 0.5:
        return ". ".join([*sentences[:-1], *[sentences[-1].rstrip(".")] * (2 + int(rng.random() * 3))]) + "."
    return sentences[0].rstrip(".") + "."


def two_sides(g: ModuleType, rng: random.Random, *, heldout: bool, spoil: int) -> tuple[str, list[str]] | None:
    """An opening and two continuations of it, or None if they are one text or too long; `spoil` percent are spoilt."""
    review = g.Review(rng, g.draw(rng, tuple(g.TOPICS)), "neutral")
    opening = g.open_review(review, heldout)
    prompt = g.a_prompt(rng, opening)
    if prompt is None:
        return None
    sides = []
    for _ in range(2):
        text = continuation(g, rng, review, opening)
        if rng.random() * 100 < spoil:
            text = spoilt(rng, text)
        sides.append(text[len(prompt) :])
    if sides[0] == sides[1] or not all(sides) or max(len(s.split()) for s in sides) > g.MAX_WORDS:
        return None
    return prompt, sides


def a_pair(g: ModuleType, rng: random.Random, heldout: bool) -> dict[str, object] | None:
    """A row with its hidden difference."""
    found = two_sides(g, rng, heldout=heldout, spoil=SPOILT)
    if found is None:
        return None
    prompt, sides = found
    one, two = true_scores(sides)
    first = rng.random() < 1 / (1 + math.exp(-(one - two) / NOISE))
    chosen, rejected, gap = (sides[0], sides[1], one - two) if first else (sides[1], sides[0], two - one)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "gap": round(gap, 4)}


def a_demonstration(g: ModuleType, rng: random.Random) -> dict[str, object] | None:
    """A prompt and the better one of two continuations."""
    found = two_sides(g, rng, heldout=False, spoil=0)
    if found is None:
        return None
    prompt, sides = found
    return {"prompt": prompt, "completion": sides[0] if true_scores(sides)[0] >= true_scores(sides)[1] else sides[1]}


def generate(seed: int = SEED) -> dict[str, list[dict[str, object]]]:
    """File name -> rows."""
    g, rng = grammar(), random.Random(seed)
    out: dict[str, list[dict[str, object]]] = {}
    for name, count, heldout in (("comparisons", PAIRS, False), ("heldout_comparisons", HELDOUT_PAIRS, True)):
        rows: list[dict[str, object]] = []
        while len(rows) < count:
            row = a_pair(g, rng, heldout)
            if row is not None:
                if not heldout:
                    del row["gap"]
                rows.append(row)
        out[f"{name}.jsonl"] = rows
    shown: list[dict[str, object]] = []
    while len(shown) < DEMONSTRATIONS:
        if (demonstration := a_demonstration(g, rng)) is not None:
            shown.append(demonstration)
    return out | {"demonstrations.jsonl": shown}


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the comparisons and demonstrations of the corpus `reviews`.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in generate().items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii", newline="\n")


if __name__ == "__main__":
    main()
