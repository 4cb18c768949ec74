"""Cached decoding: prompts in, a Rollout out.

All rows of a batch are decoded together, one token a step, over a KV cache that is allocated once. A row stops when
it samples a stop; the batch stops when every row has, or at max_new_tokens. A truncated response stays truncated: no
EOS is forced into it, because the policy did not choose one.

Not here: the distribution that is sampled (sampler.py), the forward pass (transformer.py), the choice of prompts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minirlhf.models.attention import KVCache
from minirlhf.models.policy import Policy
from minirlhf.models.rollout import Rollout
from minirlhf.models.sampler import Sampler, ids_on
from minirlhf.text.tokenizer import Conversation, Tokenizer

LOOK_EVERY = 8  # decoding steps between two checks of which rows have stopped: each check waits for the device
FEW = 0.8  # finished rows are dropped once this share of the rows, or less, is still going


@dataclass(frozen=True)
class PromptBatch:
    """B prompts ready to be continued: ids (B,P) left-padded, mask (B,P) True = real token, group (B,) = number of the
    prompt, texts, columns (B values each), and the conversations that the texts were (None, or ())."""

    ids: Tensor
    mask: Tensor
    group: Tensor
    texts: tuple[str, ...]
    columns: dict[str, tuple[Any, ...]]
    spoken: tuple[Conversation | None, ...] = ()

    @classmethod
    def build(
        cls,
        texts: Sequence[str],
        columns: Sequence[dict[str, Any]],
        tokenizer: Tokenizer,
        *,
        spoken: Sequence[Conversation | None] = (),
        responses: int = 1,
        device: torch.device | str = "cpu",
    ) -> "PromptBatch":
        """Encode prompts (`start` first), pad them on the left, and repeat each `responses` times, one after another.

        columns: one dict for each text; missing ones get None. spoken: conversations, for a chat template in use.
        """
        encoded = tokenizer.prompt_ids(texts, spoken)
        width = max(len(ids) for ids in encoded)
        # Left padding: every prompt ends in the last slot, so that the next token of all rows goes into the same new
        # slot and the states that predict it are [:, -1].
        ids = torch.full((len(encoded), width), tokenizer.pad_id)
        mask = torch.zeros(len(encoded), width, dtype=torch.bool)
        for row, tokens in enumerate(encoded):
            ids[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = True
        group = torch.arange(len(encoded))
        names = sorted({name for row in columns for name in row})
        spread = [i for i in range(len(encoded)) for _ in range(responses)]
        return cls(
            ids=ids[spread].to(device),
            mask=mask[spread].to(device),
            group=group[spread].to(device),
            texts=tuple(texts[i] for i in spread),
            columns={name: tuple(columns[i].get(name) for i in spread) for name in names},
            spoken=tuple(spoken[i] for i in spread if spoken),
        )

    def parts(self, size: int) -> Iterator["PromptBatch"]:
        """Yield the same prompts, at most `size` rows at a time."""
        for start in range(0, len(self.texts), size):
            rows = slice(start, start + size)
            columns = {name: values[rows] for name, values in self.columns.items()}
            part = (self.ids[rows], self.mask[rows], self.group[rows], self.texts[rows], columns)
            yield PromptBatch(*part, self.spoken[rows])


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: PromptBatch,
    tokenizer: Tokenizer,
    *,
    max_new_tokens: int,
    generator: torch.Generator | None = None,
    uniform: Tensor | None = None,
    sampler: Sampler | None = None,
) -> Rollout:
    """Sample one response a row, of at most max_new_tokens; sampler: the policy's own unless another one is given.

    uniform (B,max_new_tokens): random numbers in place of those that the generator draws.
    """
    sampler = sampler or policy.sampler
    (b, p), device = prompts.ids.shape, prompts.ids.device
    # One uniform for each row and step, on the CPU and before the first token: a row's tokens then depend neither on
    # the device nor on when the other rows stop.
    uniform = (torch.rand(b, max_new_tokens, generator=generator) if uniform is None else uniform).to(device)
    ids = torch.full((b, max_new_tokens), tokenizer.pad_id, device=device)
    cache = KVCache(policy.model.config, b, p + max_new_tokens, policy.model.embed_tokens.weight)
    # rows (b,): numbers of the rows that are still decoded; alive (b,): those of them that have not sampled EOS.
    rows, alive = torch.arange(b, device=device), torch.ones(b, dtype=torch.bool, device=device)
    # The whole prompt in one pass; after that one token a step, since the cache holds the keys and values before it.
    hidden = policy.model(prompts.ids, prompts.mask, cache)[:, -1:]  # (B,1,W)
    for length in range(1, max_new_tokens + 1):
        # A finished row goes on sampling until it is dropped; its tokens are replaced by PAD and nobody reads them.
        token = sampler.sample(policy.logits(hidden)[:, 0], uniform[rows, length - 1])  # (b,)
        ids[rows, length - 1] = torch.where(alive, token, tokenizer.pad_id)
        for stop in sampler.stops:
            alive = alive & (token != stop)
        # `nonzero` needs numbers from the device and waits for them; in between, steps are queued without waiting.
        if length % LOOK_EVERY == 0:
            going = alive.nonzero().squeeze(1)
            if not len(going):
                break
            # Dropping finished rows copies the cache, which a few of them are not worth.
            if len(going) <= FEW * len(rows):
                rows, alive, token = rows[going], alive[going], token[going]
                cache.keep(going)
        # The last token is never read again, so it needs no forward pass.
        if length < max_new_tokens:
            hidden = policy.model(token.unsqueeze(1), cache=cache)
    return _rollout(prompts, ids, tokenizer, sampler.stops)


def _rollout(prompts: PromptBatch, ids: Tensor, tokenizer: Tokenizer, stops: tuple[int, ...]) -> Rollout:
    """Build the rollout from sampled ids (B,R): cut to the longest response, decode the texts."""
    # A row is real through its first stop. PAD is only what stands behind it, and may be the same id as a stop.
    stopped = torch.isin(ids, ids_on(stops, ids.device))  # (B,R)
    real, terminated = stopped.cumsum(dim=1) - stopped.long() == 0, stopped.any(dim=1)
    lengths = real.sum(dim=1).tolist()
    longest = max(1, *lengths)
    ids, real = ids[:, :longest].contiguous(), real[:, :longest].contiguous()
    ends = [length - end for length, end in zip(lengths, terminated.tolist(), strict=True)]
    completions = tuple(tokenizer.decode(row[:end]) for row, end in zip(ids.tolist(), ends, strict=True))
    return Rollout(
        prompt_ids=prompts.ids,
        prompt_mask=prompts.mask,
        response_ids=ids,
        response_mask=real,
        mask=real.clone(),  # one speaker: the policy chose every real token of the response
        terminated=terminated,
        group=prompts.group,
        prompts=prompts.texts,
        completions=completions,
        columns=dict(prompts.columns),
        spoken=prompts.spoken,
    )
