"""Checks of an observer: a run of three steps in a temporary folder, then one that goes on in the same folder.

They find out whether the observer fails, changes what it watches, or draws random numbers that the run would have got.
Not here: whether what it writes is right.
"""

import copy
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from minirlhf.authoring.finding import Finding
from minirlhf.authoring.texts import BYTE, PROMPTS, Texts
from minirlhf.components.component import Built
from minirlhf.components.registry import load_plugins
from minirlhf.config.layers import load_config
from minirlhf.config.schema import Config
from minirlhf.errors import PluginError, UserError
from minirlhf.rl.experience import Experience
from minirlhf.streams import generator
from minirlhf.text.corpus import Prompt

STEPS = 3  # iterations of the run that an observer watches

# Names of the metrics of every iteration, and a summary, as a real run has them: a test compares them with one.
METRICS = (
    *(f"objective/{name}" for name in ("kl", "entropy", "non_score_reward", "rlhf_reward", "scores", "scores_std")),
    *("objective/score_length_correlation", "reward/friendly", "policy/approxkl_avg", "policy/clipfrac_avg"),
    *("policy/outside_avg", "policy/clamped_avg", "policy/entropy_avg", "policy/first_log_ratio", "policy/grad_norm"),
    *(
        "policy/logprob_grad_avg",
        "loss/policy_avg",
        "loss/value_avg",
        "val/ratio",
        "val/ratio_var",
        "val/clipfrac_avg",
        "val/num_eos_tokens",
    ),
    *("value/explained_variance", "response/length", "response/repetition", "response/eos_rate", "kl/coef", "lr"),
    *("episode", "eps", "tokens_per_s", "time/rollout", "time/score", "time/learn", "count/updates"),
    *("count/unscored", "count/reward_errors", "count/masked_rows", "count/flat_batches"),
)
SIDE = dict.fromkeys(
    ("score_mean", "score_std", "score_p90", "length_mean", "eos_rate", "distinct_2", "distinct_share", "residual_std"),
    0.5,
)
BEST = {"n": 4, "kl": 0.5, "score": 0.75, "objective": 0.7, "policy_lead": -0.3, "policy_lead_ci95": [-0.4, -0.2]}
OBJECTIVE = {
    "beta": 0.1, "prompts": 4, "reference": 0.5, "policy": 0.4, "policy_kl": 1.0, "policy_gain": -0.1,
    "policy_gain_ci95": [-0.2, 0.0], "best_of_n": [BEST], "best_known": {"what": "best of 4", "objective": 0.7},
    "share_at_most": -0.5, "not_beaten": [4], "verdict": {"against": "best of 4", "outcome": "beaten"},
}  # fmt: skip
SUMMARY = {
    "prompts": 4, "reference": SIDE, "policy": {**SIDE, "residual_std_on_reference": 0.5},
    "score_pairs": 2, "score_gain": 0.5, "score_gain_ci95": [0.25, 0.75], "win_rate": 0.5, "ties": 1,
    "kl_nats_per_sequence": 1.0, "kl_coef": 0.1,
    "best_of_n": [{"n": 1, "kl": 0.0, "score": 0.5, "score_se": 0.1}],
    "objective": OBJECTIVE,
    "seconds": {"base": 1.0, "ppo": 2.0, "evaluation": 0.5, "total": 3.5},
    "made_of": {"minirlhf": "0", "torch": "0", "sources": {"corpus.jsonl": "0" * 64}, "code": {}},
}  # fmt: skip


@dataclass(frozen=True)
class Watched:
    """Everything that an observer is shown: the same experience and metrics every step, then the summary."""

    config: Config
    experience: Experience
    metrics: dict[str, float]
    summary: dict[str, Any]

    def show(self, built: Built, folder: Path, first: int) -> None:
        """Start the observer in `folder`, tell it of STEPS steps from `first` on, and finish. Raises PluginError."""
        built.tell("start", self.config, folder)
        for step in range(first, first + STEPS):
            built.tell("step", step, self.experience, self.metrics)
        built.tell("finish", self.summary)

    def snapshot(self) -> dict[str, Any]:
        """Copies of all that an observer could change, by name."""
        copies: dict[str, Any] = {"metrics": dict(self.metrics), "summary": copy.deepcopy(self.summary)}
        parts: dict[str, Any] = {"experience": self.experience, "experience.rollout": self.experience.rollout}
        for name, part in parts.items():
            values = {f"{name}.{field.name}": getattr(part, field.name) for field in fields(part)}
            copies |= {key: value.clone() for key, value in values.items() if isinstance(value, Tensor)}
        return copies | {"experience.rollout.columns": copy.deepcopy(dict(self.experience.rollout.columns))}


def check_observer(built: Built) -> Iterator[Finding]:
    """Yield contract, watches, random numbers, goes on and time."""
    config = load_config(registry_loader=partial(load_plugins, entry_points=False))[0]
    watched = Watched(config, _random_experience(), dict.fromkeys(METRICS, 0.5), copy.deepcopy(SUMMARY))
    before, states_before = watched.snapshot(), _random_states()
    started = perf_counter()
    with TemporaryDirectory() as folder:
        try:
            watched.show(built, Path(folder), 1)
        except PluginError as fault:
            yield Finding("contract", False, str(fault))
            return
        seconds = perf_counter() - started
        yield Finding("contract", True, f"start, {STEPS} steps, finish")
        changed = [name for name, value in watched.snapshot().items() if not _equal(value, before[name])]
        what = f"changes {', '.join(changed)}" if changed else "changes nothing that it gets"
        yield Finding("watches", not changed, what, "work on copies")
        states = _random_states()
        drawn = [name for name, state in states.items() if not _equal(state, states_before.get(name, state))]
        what = f"takes numbers of {', '.join(drawn)}" if drawn else "takes none of others"
        yield Finding("random numbers", not drawn, what, "use a generator of its own, such as random.Random(0)")
        try:  # a resumed run repeats steps behind its last checkpoint: here the last one
            watched.show(built.component.build({}, device="cpu"), Path(folder), STEPS)
            yield Finding("goes on", True, "started again in the same folder")
        except UserError as fault:
            what = f"started again in the same folder: {fault}"
            yield Finding("goes on", False, what, "a resumed run starts it again")
    yield Finding("time", True, f"{1000 * seconds / STEPS:.2f} ms a step")


def _random_experience() -> Experience:
    """Experience of the texts of all kinds, (8,R), its numbers drawn at random: float32."""
    rollout = Texts.of([Prompt(text, {"source": ""}) for text in PROMPTS]).rollout()
    g, shape, words = generator(0, "testing", 1), rollout.mask.shape, BYTE + 256
    names = ("old_logprobs", "ref_logprobs", "old_values", "kl", "rewards", "advantages", "returns")
    tensors = {name: torch.randn(shape, generator=g) for name in names}
    log_dist = torch.randn(*shape, words, generator=g).log_softmax(dim=-1)  # (8,R,V)
    scores = torch.randn(len(rollout), generator=g)
    return Experience(rollout=rollout, scores=scores, ref_log_dist=lambda rows: log_dist[rows], **tensors)


def _random_states() -> dict[str, Any]:
    """States of the global generators of random, torch and (if it is imported) numpy, by name."""
    states: dict[str, Any] = {"random": random.getstate(), "torch": torch.get_rng_state()}
    if numpy := sys.modules.get("numpy"):
        name, keys, *rest = numpy.random.get_state()
        states["numpy.random"] = (name, keys.tobytes(), *rest)
    return states


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)
