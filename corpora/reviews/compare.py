#!/usr/bin/env python3
"""Writes the comparisons of the corpus `reviews`: two continuations of one opening, and which is the better one.

    python corpora/reviews/compare.py [--out DIR]        (needs minirlhf installed: the judge reads text as it does)

Both sides are written by the grammar of generate.py; some are spoilt (a sentence said again and again, or cut short),
so that there is something to learn about that, too. The judge is a hidden true score of the text, that of
minirlhf/true_score.py: sentiment, aspects named, no repetition, a length near 30 words. He errs: the better side is
chosen with probability sigmoid(difference / NOISE). The difference itself is in the held-out file only, for the report.
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
NOISE = 0.4  # score units
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


def a_pair(g: ModuleType, rng: random.Random, heldout: bool) -> dict[str, object] | None:
    """A row with its hidden difference, or None if the sides are one text."""
    review = g.Review(rng, g.draw(rng, tuple(g.TOPICS)), "neutral")
    opening = g.open_review(review, heldout)
    prompt = g.a_prompt(rng, opening)
    if prompt is None:
        return None
    sides = []
    for _ in range(2):
        text = continuation(g, rng, review, opening)
        if rng.random() * 100 < SPOILT:
            text = spoilt(rng, text)
        sides.append(text[len(prompt) :])
    if sides[0] == sides[1] or not all(sides) or max(len(s.split()) for s in sides) > g.MAX_WORDS:
        return None
    one, two = true_scores(sides)
    first = rng.random() < 1 / (1 + math.exp(-(one - two) / NOISE))
    chosen, rejected, gap = (sides[0], sides[1], one - two) if first else (sides[1], sides[0], two - one)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "gap": round(gap, 4)}


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
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the comparisons of the corpus `reviews`.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in generate().items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii", newline="\n")


if __name__ == "__main__":
    main()
