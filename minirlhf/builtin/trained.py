"""Reward `trained`: a reward model that `minirlhf reward-model` (or anyone, in that layout) has saved.

Not here: rewards of plain text (rewards.py), the network (models/scorer.py), its training (stages/reward_model.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from minirlhf import hookimpl
from minirlhf.errors import UsageError
from minirlhf.models.scorer import Ensemble
from minirlhf.store.files import read_json, verify
from minirlhf.store.models import SCORE, load_scorer, read_tokenizer
from minirlhf.text.foreign import ForeignTokenizer
from minirlhf.text.tokenizer import Tokenizer, text_ids


class trained:
    """Normalised score of a saved reward model: mean 0 and std 1 over the responses of the policy it started from.

    `path` is the directory; a run with `corpus.preferences` trains a model and fills it in. A truncated response has no
    EOS, and is scored without one. Raises UsageError if there is no reward model at the path.

    `combine`, for an ensemble: the mean of its members, their min, or `pessimistic` = mean - caution x (population)
    standard deviation over the members.
    """

    def __init__(
        self, *, path: str = "", combine: Literal["mean", "min", "pessimistic"] = "mean", caution: float = 1.0
    ) -> None:
        if not path:
            todo = "give rewards.trained.path, or corpus.preferences to train one from"
            raise UsageError("the reward trained has no reward model", todo=todo)
        if not caution >= 0:
            raise UsageError(f"caution = {caution} of the reward trained is below 0", todo="give 0 or more")
        directory = Path(path)
        members = [directory] if (directory / SCORE).is_file() else members_of(directory)
        if not members:
            todo = "give a directory that `minirlhf reward-model` has made"
            raise UsageError("this is no saved reward model", path, todo)
        verify(directory)
        self.members, self.device = members, torch.device("cpu")
        self.model = self._loaded()
        self.hash = read_json(members[0] / SCORE).get("tokenizer")
        self.tokenizer = tokenizer_of(members[0], self.hash)
        self.combine, self.caution = combine, caution

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        rollout: Any,
        trainer_state: Any,
    ) -> list[float]:
        # With the policy's own tokenizer the sampled ids are scored as they are: a text can be split into tokens in
        # several ways, and encoding it again need not give the ids that were sampled.
        if trainer_state.tokenizer_hash == self.hash:
            rows = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        else:
            ended = rollout.terminated.tolist()
            rows = [text_ids(self.tokenizer, *texts) for texts in zip(prompts, completions, ended, strict=True)]
        if rollout.mask.device != self.device:
            self.device = rollout.mask.device
            self.model = self._loaded()
        longest = max(map(len, rows), default=0)
        if longest > self.model.longest:
            todo = "lower sampler.max_new_tokens, or train one with a larger model.max_positions"
            raise ValueError(f"it reads {self.model.longest} tokens, and a text has {longest}: {todo}")
        each = self.model.each(rows)  # (k,n)
        scores: list[float] = self._combined(each).tolist()
        return scores

    def _loaded(self) -> Ensemble:
        """The members on the device, frozen. A backbone that they share with the policy there is not loaded again."""
        scorers = [load_scorer(member, self.device).to(self.device) for member in self.members]
        return Ensemble(scorers).eval().requires_grad_(False)

    def _combined(self, each: Tensor) -> Tensor:
        """Combine the members' scores: (k,n) -> (n,)."""
        if self.combine == "min":
            return each.amin(dim=0)
        mean = each.mean(dim=0)
        return mean if self.combine == "mean" else mean - self.caution * each.std(dim=0, correction=0)


def tokenizer_of(directory: Path, digest: Any) -> Tokenizer:
    """Tokenizer of a saved model, its chat template in use if that gives the hash that the model was trained with."""
    plain = read_tokenizer(directory)
    if plain.hash == digest or not isinstance(plain, ForeignTokenizer) or plain.template is None:
        return plain
    return plain.in_use()


def members_of(directory: Path) -> list[Path]:
    """List the directories OUT/0, OUT/1, ... of a saved ensemble in the order of their numbers, [] without any."""
    return sorted((file.parent for file in directory.glob(f"*/{SCORE}")), key=lambda member: member.name.zfill(8))


@hookimpl
def register_reward_models() -> Mapping[str, Any]:
    return {"trained": trained}
