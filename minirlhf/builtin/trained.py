"""The reward `trained`: a reward model that `minirlhf reward-model` (or anyone, in that layout) has saved.

A built-in plugin like those of builtin/, in a room of its own because it reads files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from minirlhf import hookimpl
from minirlhf.errors import UsageError
from minirlhf.models.scorer import Ensemble
from minirlhf.store.files import read_json, verify
from minirlhf.store.weights import SCORE, load_scorer
from minirlhf.text.tokenizer import Tokenizer, text_ids


class trained:
    """The normalised score of a saved reward model: mean 0 and standard deviation 1 over its start's responses.

    `path` is the directory; a run with `corpus.preferences` trains one from them and fills it in. With the policy's own
    tokenizer the sampled ids are scored as they are; else the texts are encoded again. A response that was cut has no
    EOS, and is scored without one.

    Of an ensemble, `combine` says what counts: the mean of its members, their min, or `pessimistic`, mean - caution x
    (population) standard deviation over them.
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
        self.model = Ensemble([load_scorer(member) for member in members]).eval().requires_grad_(False)
        self.tokenizer = Tokenizer.load(members[0])
        self.hash = read_json(members[0] / SCORE).get("tokenizer")
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
        if trainer_state.tokenizer_hash == self.hash:
            rows = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        else:
            ended = rollout.terminated.tolist()
            rows = [text_ids(self.tokenizer, *texts) for texts in zip(prompts, completions, ended, strict=True)]
        self.model.to(rollout.mask.device)
        each = self.model.each([row[: self.model.longest] for row in rows])
        scores: list[float] = self._combined(each).tolist()
        return scores

    def _combined(self, each: Tensor) -> Tensor:
        """(k,n) -> (n,)"""
        if self.combine == "min":
            return each.amin(dim=0)
        mean = each.mean(dim=0)
        return mean if self.combine == "mean" else mean - self.caution * each.std(dim=0, correction=0)


def members_of(directory: Path) -> list[Path]:
    """OUT/0, OUT/1, ... of a saved ensemble."""
    return sorted((file.parent for file in directory.glob(f"*/{SCORE}")), key=lambda place: place.name.zfill(8))


@hookimpl
def register_reward_models() -> Mapping[str, Any]:
    return {"trained": trained}
