"""Cached decoding: prompts in, a Rollout out.

All rows of a batch are decoded together, one token a step, over a KV cache that is allocated once. A row stops when
it samples a stop; the batch stops when every row has, or at max_new_tokens. A truncated response stays truncated: no
EOS is forced into it, because the policy did not choose one.

Not here: a single step (decoding.py), the distribution that is sampled (sampler.py), the forward pass
(transformer.py), the choice of prompts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minirlhf.models.attention import KVCache
from minirlhf.models.decoding import Decoding
from minirlhf.models.policy import Policy
from minirlhf.models.rollout import Rollout
from minirlhf.models.sampler import Sampler, ids_on
from minirlhf.text.tokenizer import Conversation, Tokenizer

LOOK_EVERY = 8  # decoding steps between two checks of which rows have stopped: each check waits for the device


@dataclass(frozen=True)
class PromptBatch:
    """B prompts ready to be continued: ids (B,P) left-padded, mask (B,P) True = real token, group (B,) = number of the
    prompt, texts, columns (B values each), the conversations that the texts were (None, or ()), and repeats: each
    prompt stands in that many rows, one after another."""

    ids: Tensor
    mask: Tensor
    group: Tensor
    texts: tuple[str, ...]
    columns: dict[str, tuple[Any, ...]]
    spoken: tuple[Conversation | None, ...] = ()
    repeats: int = 1

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
            repeats=responses,
        )

    def parts(self, size: int) -> Iterator["PromptBatch"]:
        """Yield the same prompts, at most `size` rows at a time."""
        # A part may begin between two rows of one prompt; it is then not known how often a prompt stands in it.
        repeats = self.repeats if size % self.repeats == 0 else 1
        for start in range(0, len(self.texts), size):
            rows = slice(start, start + size)
            columns = {name: values[rows] for name, values in self.columns.items()}
            part = (self.ids[rows], self.mask[rows], self.group[rows], self.texts[rows], columns)
            yield PromptBatch(*part, self.spoken[rows], repeats)


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

    uniform (B,max_new_tokens): random numbers in place of those that the generator draws; one of the two is given.
    """
    if (generator is None) == (uniform is None):
        raise ValueError("give a generator, or the random numbers themselves")
    sampler = sampler or policy.sampler
    b, device = len(prompts.ids), prompts.ids.device
    # One uniform for each row and step, on the CPU and before the first token: a row's tokens then depend neither on
    # the device nor on when the other rows stop.
    uniform = (torch.rand(b, max_new_tokens, generator=generator) if uniform is None else uniform).to(device)
    with torch.inference_mode():  # nothing that is made in it can be differentiated, which saves bookkeeping
        ids = _sampled(policy, prompts, sampler, uniform, tokenizer.pad_id)
    # A copy that is made outside of it can be read where the policy learns.
    return _rollout(prompts, ids.clone(), tokenizer, sampler.stops)


def _sampled(policy: Policy, prompts: PromptBatch, sampler: Sampler, uniform: Tensor, pad_id: int) -> Tensor:
    """Sample ids (B,R), one uniform number of (B,R) each; PAD stands behind a stop."""
    (b, p), most = prompts.ids.shape, uniform.shape[1]
    # The prompts in one pass, each of them once; after that one token a row and step, since the cache holds the keys
    # and values before it.
    each = slice(None, None, prompts.repeats)
    cache = KVCache(policy.model.config, -(-b // prompts.repeats), p + most, policy.model.embed_tokens.weight)
    hidden = policy.model(prompts.ids[each], prompts.mask[each], cache)[:, -1:]  # (B,1,W)
    if prompts.repeats > 1:
        rows = torch.arange(b, device=hidden.device) // prompts.repeats
        cache.keep(rows)
        hidden = hidden[rows]
    decoding = Decoding(policy, sampler, cache, uniform, pad_id)
    decoding.choose(hidden)
    # The last token is never read again, so it needs no forward pass.
    for length in range(1, most):
        # How many go on is a number of the device, which is waited for; in between, steps are queued without waiting.
        if length % LOOK_EVERY == 0 and not decoding.shrink():
            break
        decoding.step()
    return decoding.finish()


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
