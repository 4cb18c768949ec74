"""Token log: the numbers of some responses, token by token, before and after the update that learned from them.

One row a response, of plain numbers and texts, ready for a file; the report's token view and `minirlhf inspect` read
them. Numbers that the update used (value, reward, advantage, old log-prob, the reference's distributions) come from the
experience; those that it led to (log-prob, alternatives, KL of whole distributions) are computed here. That takes no
gradient, no random number and no stateful component, so a run is the same to the bit with and without a token log.
"""

import codecs
from collections.abc import Iterator, Sequence
from functools import cache
from math import inf
from typing import Any

import torch
from torch import Tensor

from minirlhf.builtin import kl
from minirlhf.components.component import Built
from minirlhf.errors import PluginError
from minirlhf.models.policy import Policy
from minirlhf.models.rollout import LogDist
from minirlhf.rl.experience import Experience
from minirlhf.rl.terms import LossInputs, compute_loss
from minirlhf.text.tokenizer import Tokenizer

LIKELIEST = 5  # alternatives of each token
NUMBERS = 1 << 22  # most numbers of distributions in memory at a time


@torch.no_grad()
def token_log(
    experience: Experience, policy: Policy, loss: Built, beta: float, tokenizer: Tokenizer, count: int
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield a row for each of the first `count` responses; lists have one entry a response token, EOS included.

    prompt; score (None if no reward applied or the row is masked); terminated; tokens: their texts; old_logprob, kl (of
    the chosen estimator), value, reward, advantage as the update used them; logprob, ref_logprob, exact (KL over the
    vocabulary) after it, in nats; clipped: True where the loss held the token back (None if the loss does not say);
    likeliest: [text, log-prob of the policy, of the reference] of the five tokens that the policy now finds most
    likely. beta: coefficient of N10's penalty.
    """
    if not count:
        return
    some = experience.rows(torch.arange(min(count, len(experience))))
    now = policy.forward_pass(some.rollout)
    columns = {
        "old_logprob": some.old_logprobs, "logprob": now.logprobs, "ref_logprob": some.ref_logprobs, "kl": some.kl,
        "value": some.old_values, "reward": some.rewards, "advantage": some.advantages,
    }  # fmt: skip
    held_back = clipped(loss, some, now.logprobs, beta)
    whole = distributions(now.log_dist, some.ref_log_dist, some.rollout.response_mask, tokenizer)
    for row, (ids, (exact, choices)) in enumerate(zip(some.rollout.completion_id_lists, whole, strict=True)):
        real = some.rollout.response_mask[row]
        yield {
            "prompt": some.rollout.prompts[row],
            "score": some.scores[row].item() if some.learnable[row] else None,
            "terminated": bool(some.rollout.terminated[row]),
            "tokens": pieces(tokenizer, ids),
            **{name: rounded(values[row][real]) for name, values in columns.items()},
            "exact": exact,
            "clipped": None if held_back is None else held_back[row][real].bool().tolist(),
            "likeliest": choices,
        }


def distributions(
    now: LogDist, ref: LogDist, real: Tensor, tokenizer: Tokenizer
) -> Iterator[tuple[list[float | None], list[list[list[Any]]]]]:
    """Yield KL(policy, reference) of the tokens and their most likely alternatives, for each row of `real` (B,R).

    Only some rows of distributions exist at a time: at a vocabulary of 50,000 those of one response take 40 MB.
    """
    names = cache(lambda token: token_text(tokenizer, token))
    size = max(1, NUMBERS // (real.shape[1] * tokenizer.vocab_size))
    for start in range(0, len(real), size):
        part = slice(start, min(start + size, len(real)))
        log_dist, ref_dist = now(part), ref(part)
        exact, top = kl.exact(log_dist, ref_dist), log_dist.topk(min(LIKELIEST, log_dist.shape[-1]))
        theirs = ref_dist.gather(-1, top.indices)
        for row, here in enumerate(real[part]):
            ids, p, q = (x[row][here].flatten() for x in (top.indices, top.values, theirs))
            texts = [names(token) for token in ids.tolist()]
            choices = [list(choice) for choice in zip(texts, rounded(p), rounded(q), strict=True)]
            width = top.indices.shape[-1]
            each = [choices[at : at + width] for at in range(0, len(choices), width)]
            yield rounded(exact[row][here]), [[choice for choice in some if choice[1] is not None] for some in each]


def clipped(loss: Built, some: Experience, logprobs: Tensor, beta: float) -> Tensor | None:
    """`clipfrac` that the loss logs for the tokens (B,R) at these log-probs; None if it logs none.

    A loss that is a class may count its calls, so it is not asked. Numbers are not checked here (the checks are
    deferred and dropped), so that weights which are not finite are reported where they would be saved.
    """
    if loss.state is not None:
        return None
    now = logprobs.detach().requires_grad_()
    inputs = LossInputs(now, some.old_logprobs, some.ref_logprobs, some.advantages, some.mask, beta)
    try:
        with torch.enable_grad():  # as in the update: the loss may take a gradient itself
            _, logged = compute_loss(loss, inputs, later=[])
    except PluginError:  # the run has learned from these responses; that the loss cannot be asked again is no fault
        return None
    found = logged.get("clipfrac")
    return found if found is not None and found.shape == some.mask.shape else None


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Texts of the tokens, which joined are the whole text: a character stands at the token of its last byte."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    last = len(ids) - 1
    return [decoder.decode(tokenizer.token_bytes(token), final=i == last) for i, token in enumerate(ids)]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Text of a single token: half a character as its bytes, a special token by its name."""
    special = tokenizer.special
    return special.get(token) or tokenizer.token_bytes(token).decode("utf-8", errors="backslashreplace")


def rounded(values: Tensor) -> list[float | None]:
    """Values rounded to six decimals; None for numbers that are not finite (log-probs of banned tokens)."""
    found: list[float | None] = values.cpu().double().round(decimals=6).tolist()
    return (
        found if bool(values.isfinite().all()) else [None if x is None or abs(x) == inf or x != x else x for x in found]
    )
