"""The rewards as the loop calls them: a baseline is judged from the state that the responses were judged from."""

import torch

from minirlhf.config.layers import load_config
from minirlhf.pipeline.context import RunContext
from minirlhf.pipeline.rewards import RewardCalls
from minirlhf.rewards.call import RewardModels
from tests.helpers import Letters, built, random_rollout


class Counter:
    """Scores 1, 2, 3, ... over all its calls."""

    def __init__(self):
        self.count = 0

    def __call__(self, completions):
        self.count += len(completions)
        return list(range(self.count - len(completions) + 1, self.count + 1))

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_a_greedy_baseline_is_judged_from_the_state_of_the_responses_and_leaves_no_trace(tmp_path):
    config, registry = load_config("tiny")
    run = RunContext(config, registry, torch.device("cpu"), tmp_path, lambda event: None)
    calls = RewardCalls(run, RewardModels([("counter", 1.0, built("reward", Counter))]), Letters(), twice=True)
    rollout = random_rollout(3)
    assert calls(rollout, 0).total.tolist() == [1, 2, 3]
    assert calls(random_rollout(2), 0).total.tolist() == [1, 2]  # the most likely responses of the same iteration
    assert calls(rollout, 1).total.tolist() == [4, 5, 6]
    assert calls(rollout, 2).total.tolist() == [7, 8, 9]
