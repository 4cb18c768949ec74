"""Texts on which rewards and observers are tried: prompts and completions of all kinds, and the rollout they make.

They are encoded as bytes, without a tokenizer: a check needs ids that belong to the texts, not ids that a model knows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from minirlhf.components.component import Built
from minirlhf.models.rollout import Rollout
from minirlhf.rewards.batch import RewardBatch, TrainerState
from minirlhf.rewards.call import RewardModels
from minirlhf.text.corpus import Prompt

PROMPTS = ("I bought this kettle", "", "你好", "A question?\nWith two lines.")
COMPLETIONS = (
    " and it is good.", "", " ", " 茶很好。", " naïve café 👩‍👩‍👧 e\u0301 \u202eabc", " a" * 5000, "\n\t\0",
    " <eos> </s> [INST] %s {0}",
)  # fmt: skip
PAD, BOS, EOS, BYTE = 0, 1, 2, 3  # ids; byte n of a text's UTF-8 has id BYTE + n
LONGEST = 64  # tokens of a response; a longer text keeps its beginning and has no EOS, like a truncated response

TextScores = list[float] | None  # [score, then a reward for each token (0 if none was given)]; None = not scored


@dataclass(frozen=True)
class Texts:
    """Prompts, completions and columns, one value a row."""

    prompts: tuple[str, ...]
    completions: tuple[str, ...]
    columns: Mapping[str, tuple[Any, ...]]

    @classmethod
    def of(cls, rows: Sequence[Prompt]) -> "Texts":
        """All COMPLETIONS, each after one of these prompts in turn."""
        picked = [rows[i % len(rows)] for i in range(len(COMPLETIONS))]
        names = sorted({name for row in rows for name in row.columns})
        columns = {name: tuple(row.columns.get(name) for row in picked) for name in names}
        return cls(tuple(row.text for row in picked), COMPLETIONS, columns)

    def rows(self, order: Sequence[int]) -> "Texts":
        """The rows with these numbers, in this order."""
        columns = {name: tuple(values[i] for i in order) for name, values in self.columns.items()}
        return Texts(tuple(self.prompts[i] for i in order), tuple(self.completions[i] for i in order), columns)

    def without_columns(self) -> "Texts":
        """The same texts with None in every column, as a prompt file may leave it."""
        return Texts(self.prompts, self.completions, {name: (None,) * len(self.prompts) for name in self.columns})

    def rollout(self) -> Rollout:
        """Rollout as the loop would have sampled it: prompts (B,P) left-padded, responses (B,R), int64 on the CPU."""
        prompts = [[BOS, *(BYTE + byte for byte in text.encode())] for text in self.prompts]
        encoded = [text.encode() for text in self.completions]
        ended = [len(text) < LONGEST for text in encoded]
        responses = [
            [*(BYTE + byte for byte in text[:LONGEST]), *([EOS] if end else [])]
            for text, end in zip(encoded, ended, strict=True)
        ]
        p, r = (max(len(ids) for ids in lists) for lists in (prompts, responses))
        prompt_ids = torch.tensor([[PAD] * (p - len(ids)) + ids for ids in prompts])
        response_ids = torch.tensor([ids + [PAD] * (r - len(ids)) for ids in responses])
        distinct = list(dict.fromkeys(self.prompts))
        return Rollout(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_ids != PAD,
            response_ids=response_ids,
            response_mask=response_ids != PAD,
            mask=response_ids != PAD,
            terminated=torch.tensor(ended),
            group=torch.tensor([distinct.index(text) for text in self.prompts]),
            prompts=self.prompts,
            completions=self.completions,
            columns=self.columns,
        )

    def scored_by(self, built: Built) -> list[TextScores]:
        """Call a reward on these rows and check its result, both as the loop does. Raises PluginError as there."""
        rollout = self.rollout()
        scores = RewardModels([(built.component.name, 1.0, built)]).call(
            RewardBatch(
                prompts=list(self.prompts),
                completions=list(self.completions),
                prompt_ids=rollout.prompt_id_lists,
                completion_ids=rollout.completion_id_lists,
                columns=self.columns,
                trainer_state=TrainerState(0, 1, 0.0),
                rollout=rollout,
            )
        )
        tokens = scores.token_rewards or [[0.0] * len(ids) for ids in rollout.completion_id_lists]
        return [None if score is None else [score, *row] for score, row in zip(scores.total, tokens, strict=True)]
