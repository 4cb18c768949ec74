"""The token log: what the models thought of some responses, token by token, after the update that learned from them.

One row a response, plain numbers and texts, ready for a file; the report's token view and `minirlhf inspect` read them.
What the update used (value, reward, advantage, old log-prob) is the rollout's; what it led to (log-prob, alternatives,
KL of the whole distributions) is scored here, without gradients, without randomness and without a stateful component,
so that a run with a token log and one without are the same to the bit.
"""

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minirlhf.builtin import kl
from minirlhf.components import Built, check_loss
from minirlhf.experience import Experience, LogDist
from minirlhf.models.policy import Policy, Reference
from minirlhf.text.tokenizer import SPECIAL, Tokenizer

MOST = 64  # responses
LIKELIEST = 5  # alternatives of each token


@torch.no_grad()
def token_log(
    experience: Experience, policy: Policy, reference: Reference, loss: Built, beta: float, tokenizer: Tokenizer,
    count: int,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row for each of the first `count` responses; lists have an entry a response token, EOS included.

    prompt, score (None if no reward applied), terminated; tokens their texts; old_logprob, kl (the chosen estimator's),
    value, reward, advantage as the update used them; logprob, ref_logprob, exact (KL over the vocabulary) after it, in
    nats; clipped, whether the loss held the token back (None where the loss does not say); likeliest, for each token
    [text, log-prob of the policy, of the reference] of the five that the policy finds most likely now.
    beta: that of the loss (N10).
    """
    if not count:
        return
    some = experience.rows(torch.arange(min(count, len(experience))))
    now, ref = policy.score(some.rollout), reference.score(some.rollout)
    columns = {
        "old_logprob": some.old_logprobs, "logprob": now.logprobs, "ref_logprob": ref.logprobs, "kl": some.kl,
        "value": some.old_values, "reward": some.rewards, "advantage": some.advantages,
    }  # fmt: skip
    held_back = clipped(loss, some, now.logprobs, beta)
    for row, ids in enumerate(some.rollout.completion_id_lists):
        real = some.rollout.response_mask[row]
        log_dist, ref_dist = distributions(now.log_dist, ref.log_dist, row, real)
        yield {
            "prompt": some.rollout.prompts[row],
            "score": some.scores[row].item() if some.learnable[row] else None,
            "terminated": bool(some.rollout.terminated[row]),
            "tokens": pieces(tokenizer, ids),
            **{name: rounded(values[row][real]) for name, values in columns.items()},
            "exact": rounded(kl.exact(log_dist, ref_dist)),
            "clipped": None if held_back is None else held_back[row][real].bool().tolist(),
            "likeliest": likeliest(log_dist, ref_dist, tokenizer),
        }


def distributions(now: LogDist, ref: LogDist, row: int, real: Tensor) -> tuple[Tensor, Tensor]:
    """Of the real tokens of one response, (n,V) each: a row at a time, for vocabularies of 50,000."""
    part = slice(row, row + 1)
    return now(part)[0][real], ref(part)[0][real]


def clipped(loss: Built, some: Experience, logprobs: Tensor, beta: float) -> Tensor | None:
    """What the loss logs as `clipfrac` for the tokens (B,R) at these log-probs; None if it logs none.

    One that is a class may count its calls and is not asked.
    """
    if loss.state is not None:
        return None
    known = {
        "logprobs": logprobs, "old_logprobs": some.old_logprobs, "ref_logprobs": some.ref_logprobs,
        "advantages": some.advantages, "mask": some.mask, "beta": beta,
    }  # fmt: skip
    found = check_loss(loss, loss(known), some.mask, known)[1].get("clipfrac")
    return found if found is not None and found.shape == some.mask.shape else None


def likeliest(log_dist: Tensor, ref_dist: Tensor, tokenizer: Tokenizer) -> list[list[list[Any]]]:
    """The most likely tokens of (n,V) distributions: n lists of [text, log-prob, log-prob of the reference]."""
    top = log_dist.topk(min(LIKELIEST, log_dist.shape[-1]))
    theirs = ref_dist.gather(-1, top.indices)
    found = zip(top.indices.tolist(), top.values, theirs, strict=True)
    return [
        [
            [token_text(tokenizer, i), p, q]
            for i, p, q in zip(ids, rounded(a, 4), rounded(b, 4), strict=True)
            if p is not None
        ]
        for ids, a, b in found
    ]


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token, which together are the text of all: a character stands where its last byte is."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    last = len(ids) - 1
    return [decoder.decode(tokenizer.token_bytes(token), final=i == last) for i, token in enumerate(ids)]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token by itself: half a character as its bytes, a special token by its name."""
    special = {tokenizer.pad_id: SPECIAL[0], tokenizer.bos_id: SPECIAL[1], tokenizer.eos_id: SPECIAL[2]}
    return special.get(token) or tokenizer.token_bytes(token).decode("utf-8", errors="backslashreplace")


def rounded(values: Tensor, digits: int = 6) -> list[float | None]:
    """To so many significant digits; what is not finite (a banned token's log-prob) as None."""
    return [float(f"{value:.{digits}g}") if abs(value) < float("inf") else None for value in values.tolist()]
