"""Reward `trained`: a reward model that `minirlhf reward-model` has saved, or one of somebody else.

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
from minirlhf.store.adapters import DTYPES
from minirlhf.store.classifiers import architecture_of, is_classifier, load_classifier, padding_id
from minirlhf.store.files import MANIFEST, read_json, verify
from minirlhf.store.models import SCORE, load_scorer, read_tokenizer
from minirlhf.text.foreign import ForeignTokenizer
from minirlhf.text.tokenizer import Tokenizer, text_ids


class trained:
    """Normalised score of a saved reward model: mean 0 and std 1 over the responses of the policy it started from.

    `path` is the directory; a run with `corpus.preferences` trains a model and fills it in. A truncated response has no
    EOS, and is scored without one. Raises UsageError if there is no reward model at the path.

    It may also hold somebody else's Llama-, Qwen2- or Qwen3ForSequenceClassification with one label. Such a model gets
    the conversation by its own tokenizer and chat template, the response as the assistant's turn (without a template
    prompt + response as one text), and is read where transformers reads it: at the last token that is not its
    pad_token_id. Where PAD is also EOS, this is one token before an EOS at the end. No mean and standard deviation are
    known, so its scores stay as they are: set `rewards.LABEL.normalize = true`. `dtype` is that of its weights.

    `combine`, for an ensemble: the mean of its members, their min, or `pessimistic` = mean - caution x (population)
    standard deviation over the members.
    """

    def __init__(
        self,
        *,
        path: str = "",
        combine: Literal["mean", "min", "pessimistic"] = "mean",
        caution: float = 1.0,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        if not path:
            todo = "give rewards.trained.path, or corpus.preferences to train one from"
            raise UsageError("the reward trained has no reward model", todo=todo)
        if not caution >= 0:
            raise UsageError(f"caution = {caution} of the reward trained is below 0", todo="give 0 or more")
        directory = Path(path)
        members = [directory] if (directory / SCORE).is_file() else members_of(directory)
        self.foreign = not members and is_classifier(directory)
        if not members and not self.foreign:
            found = architecture_of(directory)
            what = "this is no saved reward model" + (f" (its architecture is {found[:60]})" if found else "")
            todo = "give a directory that `minirlhf reward-model` has made, or a ...ForSequenceClassification"
            raise UsageError(what, path, todo)
        if dtype != "float32" and not self.foreign:
            what = f"dtype = {dtype} of the reward trained is for models of others"
            raise UsageError(what, path, "leave it out: a model of ours is read as it was trained")
        if not self.foreign or (directory / MANIFEST).exists():
            verify(directory)
        self.members, self.device, self.dtype = members or [directory], torch.device("cpu"), DTYPES[dtype]
        # Somebody else's model scores no ids that were sampled: it has a template of its own, and knows no border.
        self.hash = None if self.foreign else read_json(members[0] / SCORE).get("tokenizer")
        self.tokenizer = read_tokenizer(directory) if self.foreign else tokenizer_of(members[0], self.hash)
        if self.foreign and isinstance(self.tokenizer, ForeignTokenizer) and self.tokenizer.template:
            self.tokenizer.template.check()  # its fault is told now, and not after the first responses
        self.pad_id = padding_id(directory) if self.foreign else None
        self.model = self._loaded()
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
        spoken = rollout.spoken or [None] * len(prompts)
        if self.foreign:
            texts = zip(prompts, completions, spoken, strict=True)
            rows = [read_part(self.tokenizer.whole_ids(*text), self.pad_id) for text in texts]
            self._check_ids(rows)
        elif trainer_state.tokenizer_hash == self.hash:
            # With the policy's own tokenizer the sampled ids are scored as they are: a text can be split into tokens
            # in several ways, and encoding it again need not give the ids that were sampled.
            rows = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        else:
            ended = rollout.terminated.tolist()
            rows = [text_ids(self.tokenizer, *text) for text in zip(prompts, completions, ended, spoken, strict=True)]
        if rollout.mask.device != self.device:
            self.device = rollout.mask.device
            self.model = self.model.to(self.device) if self.foreign else self._loaded()
        longest = max(map(len, rows), default=0)
        if longest > self.model.longest:
            todo = "lower sampler.max_new_tokens, or use one with more positions (model.max_positions)"
            raise ValueError(f"it reads {self.model.longest} tokens, and a text has {longest}: {todo}")
        each = self.model.each(rows)  # (k,n)
        scores: list[float] = self._combined(each).tolist()
        return scores

    def _loaded(self) -> Ensemble:
        """The members on the device, frozen. A backbone that they share with the policy there is not loaded again."""
        if self.foreign:
            scorers = [load_classifier(member, self.dtype, self.device) for member in self.members]
        else:
            scorers = [load_scorer(member, self.device).to(self.device) for member in self.members]
        return Ensemble(scorers).eval().requires_grad_(False)

    def _check_ids(self, rows: Sequence[Sequence[int]]) -> None:
        """Refuse a text without a token, and an id without an embedding: on a GPU it would end the process."""
        size = min(scorer.model.config.vocab_size for scorer in self.model.scorers())
        for row in rows:
            if not row or max(row) >= size:
                what = f"a text has the id {max(row)}, and it has {size} embeddings" if row else "a text has no token"
                raise ValueError(f"{what}: give a model with its own tokenizer")

    def _combined(self, each: Tensor) -> Tensor:
        """Combine the members' scores: (k,n) -> (n,)."""
        if self.combine == "min":
            return each.amin(dim=0)
        mean = each.mean(dim=0)
        return mean if self.combine == "mean" else mean - self.caution * each.std(dim=0, correction=0)


def read_part(ids: Sequence[int], pad_id: int | None) -> Sequence[int]:
    """Ids through the last that is not PAD: transformers reads the score there. All of them PAD: the first alone."""
    last = max((at for at, token in enumerate(ids) if token != pad_id), default=0)
    return ids[: last + 1]


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
