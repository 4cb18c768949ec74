"""What is held out, and what is said about it; and, slow, the preset `preferences` over five seeds.

`pytest -m slow -s tests/stages/test_preferences.py`: pretraining, SFT, reward model and PPO from nothing. Prints the
table of docs/preferences.md; times are not asserted.
"""

import json
import random
from pathlib import Path
from time import perf_counter

import pytest
import torch

from minirlhf.config.schema import Config, CorpusConfig
from minirlhf.stages.base import Base, sft_examples
from minirlhf.stages.preferences import divide, tell_ties, tell_tuned
from minirlhf.stages.reward_model import Pair
from minirlhf.text.comparisons import read_comparisons
from minirlhf.text.tokenizer import text_ids
from tests.cli.calling import done
from tests.helpers import Letters, small_trunk


def pairs(count, prompt="", **options):
    """Pairs of two tokens a side, all different."""
    return [Pair([1, i], [2, i], 0.0, options.get("probability", 1.0), prompt=prompt.format(i)) for i in range(count)]


def config(**corpus):
    return Config().model_copy(update={"corpus": CorpusConfig(**corpus)})


@pytest.mark.parametrize("prompt", ["", "p{}"])
def test_comparisons_without_a_prompt_are_held_out_twice_like_prompts(prompt):
    learn, watched, heldout = divide(pairs(100, prompt), None, config(preferences="x"))
    assert [len(part) for part in (learn, watched, heldout)] == [81, 9, 10]
    learn, watched, heldout = divide(pairs(40, prompt), None, config(preferences="x"))
    assert [len(part) for part in (learn, heldout)] == [36, 4]
    assert watched is heldout  # too few to hold out twice


def test_an_accuracy_that_ties_leave_nothing_for_is_said_once():
    certain, ties = pairs(3), pairs(2, probability=0.5)
    assert tell_ties(certain, certain) == tell_ties([*ties, *certain], certain) == []
    (both,) = tell_ties(ties, ties)
    assert both.startswith(
        "all comparisons that are held out to decide when to stop and to report the accuracy are ties"
    )
    (one,) = tell_ties(certain, ties)
    assert one.startswith("all comparisons that are held out to report the accuracy are ties")


def test_a_heldout_comparison_that_the_start_model_has_learned_is_said(tmp_path):
    """Four of five demonstrations are learned from; of three held-out pairs the first two are among all five."""
    shown = tmp_path / "shown.jsonl"
    shown.write_text("".join(json.dumps({"prompt": "a", "completion": c}) + "\n" for c in "bcdef"))
    own = config(demonstrations=str(shown))
    start = Base(tmp_path, small_trunk(), Letters(), {})
    learned, held, _ = sft_examples(own, start.tokenizer)
    assert (len(learned), len(held)) == (4, 1)
    new = Pair(text_ids(Letters(), "a", "g", True), [1], 0.0, 1.0)
    known = [Pair(example.ids, [1], 0.0, 1.0) for example in (learned[0], held[0])]
    (note,) = tell_tuned(own, start, [*known, new])
    assert note.startswith("1 of 3 chosen sides of held-out comparisons are trained on as well")
    assert tell_tuned(own, start, [new]) == tell_tuned(config(), start, known) == []


# ---- the preset ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(run_finished of five seeds, the report of the reward model)."""
    folder, threads = tmp_path_factory.mktemp("preferences"), torch.get_num_threads()
    finished, reports, seconds = [], [], []
    for seed in range(5):
        started = perf_counter()
        arguments = ("--seed", seed, "--set", f"run.bases={folder / 'bases'}", "--out", folder / str(seed), "--json")
        events = done("run", "preferences", *arguments).events
        seconds.append(perf_counter() - started)
        finished.append(events[-1])
        reports += [e["report"] for e in events if e["event"] == "reward_model_finished"]
    torch.set_num_threads(threads)
    print("\n| seed | proxy before | after | true score before | after | gain, 95 % interval | KL, nats |")
    print("|---|---|---|---|---|---|---|")
    for seed, e in enumerate(finished):
        low, high = e["true_score_gain_ci95"]
        sides = [e[side] for side in ("reference", "policy")]
        proxy, truth = ([side[name] for side in sides] for name in ("score_mean", "true_score_mean"))
        print(
            f"| {seed} | {proxy[0]:+.2f} | {proxy[1]:+.2f} | {truth[0]:+.2f} | {truth[1]:+.2f} "
            f"| {e['true_score_gain']:+.2f} ({low:+.2f} to {high:+.2f}) | {e['kl_nats_per_sequence']:.2f} |"
        )
    print(f"first run {seconds[0]:.0f} s, the others {min(seconds[1:]):.0f} to {max(seconds[1:]):.0f} s")
    return finished, reports


@pytest.mark.slow
def test_the_reward_model_is_trained_once_and_learns_three_quarters_of_what_the_noise_allows(runs):
    _, [report] = runs
    share = f"{report['of_ceiling']:.0%} of what the noise allows"
    print(f"accuracy {report['accuracy']:.3f} of {report['ceiling']:.3f}, {share}, ECE {report['ece']:.3f}")
    assert report["pairs"] >= 1000
    assert report["of_ceiling"] >= 0.75


@pytest.mark.slow
def test_the_true_score_rises_for_every_seed(runs):
    for finished in runs[0]:
        assert finished["true_score_gain_ci95"][0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["shuffled", "flipped"])
def test_controls(labels, tmp_path_factory, runs):
    """Shuffled labels teach nothing: accuracy 0.5 within its interval, no true score gained. Flipped ones lower it."""
    folder = tmp_path_factory.mktemp(labels)
    rows, _ = read_comparisons("reviews")
    draw = random.Random(0)
    pairs = folder / "pairs.jsonl"
    with pairs.open("w", encoding="utf-8") as file:
        for row in rows:
            sides = [row.rejected, row.chosen]
            if labels == "shuffled" and draw.random() < 0.5:
                sides.reverse()
            file.write(json.dumps({"prompt": row.prompt, "chosen": sides[0], "rejected": sides[1]}) + "\n")
    bases = Path(runs[0][0]["run_dir"]).parent / "bases"
    sets = [part for s in (f"corpus.preferences={pairs}", f"run.bases={bases}") for part in ("--set", s)]
    events = done("run", "preferences", *sets, "--out", folder / "run", "--json").events
    (report,) = [e["report"] for e in events if e["event"] == "reward_model_finished"]
    low, high = events[-1]["true_score_gain_ci95"]
    print(
        f"{labels}: accuracy {report['accuracy']:.3f} of {report['pairs']}, true score gain {low:+.2f} to {high:+.2f}"
    )
    if labels == "shuffled":
        assert report["accuracy_ci95"][0] <= 0.5 <= report["accuracy_ci95"][1]
        assert low <= 0
    else:
        assert report["accuracy"] > 0.75
        assert high < 0
