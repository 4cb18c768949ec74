"""Checks of an observer: for every check, an observer that fails it, and one that keeps the contract."""

import json
import random

import pytest
import torch

from minirlhf.authoring.observer import METRICS, SUMMARY
from minirlhf.testing import assert_sound


class Quiet:
    def start(self, config, run_dir):
        self.file, self.own = run_dir / "log.txt", random.Random(0)

    def step(self, step, experience, metrics):
        self.file.write_text(f"{metrics['objective/scores']} {experience.kl.sum()} {self.own.random()}")

    def finish(self, summary):
        self.file.write_text(f"{summary['policy']['score_mean']}")


class Exclusive(Quiet):
    def start(self, config, run_dir):
        super().start(config, run_dir)
        (run_dir / "mine").open("x").close()


class Absent(Quiet):
    def step(self, step, experience, metrics):
        metrics["no/such"] += 1


class Editing(Quiet):
    def step(self, step, experience, metrics):
        metrics["objective/scores"] = 0.0
        experience.kl.data.mul_(2)


class Summing(Quiet):
    def finish(self, summary):
        del summary["policy"]["score_mean"]


class Drawing(Quiet):
    def step(self, step, experience, metrics):
        torch.rand(1)


class Rolling(Quiet):
    def start(self, config, run_dir):
        random.random()
        super().start(config, run_dir)


OBSERVERS = {
    Quiet: {},
    Exclusive: {"goes on": "FileExistsError"},
    Absent: {"contract": "KeyError"},
    Editing: {"watches": "changes metrics, experience.kl"},
    Summing: {"watches": "changes summary", "goes on": "KeyError"},  # the second run misses the deleted entry
    Drawing: {"random numbers": "takes numbers of torch"},
    Rolling: {"random numbers": "takes numbers of random"},
}


@pytest.mark.parametrize("observer", OBSERVERS, ids=lambda c: c.__name__)
def test_an_observer(observer):
    said = ""
    try:
        assert_sound("observer", observer)
    except AssertionError as error:
        said = str(error)
    failed = dict(line.split(": ", 1) for line in said.splitlines())
    assert set(failed) == set(OBSERVERS[observer])
    for name, part in OBSERVERS[observer].items():
        assert part in failed[name]


def test_an_observer_is_tried_with_what_a_run_gives(finished):
    run, _ = finished
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    several = {"step", "objective/residual_std", "count/flat_groups"}  # the finished run has two responses a prompt
    assert {"reward/friendly" if k.startswith("reward/") else k for k in row} - several == set(METRICS)
    summary = json.loads((run / "evaluation.json").read_text())
    assert set(summary) == set(SUMMARY) | {"objective_unknown"}
    # The finished run normalises its scores, and reports neither these nor an objective.
    normalized = {"residual_std", "residual_std_on_reference"}
    assert set(summary["policy"]) == set(SUMMARY["policy"]) - normalized
