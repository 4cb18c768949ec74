"""Cross-entropy through the LM head, a chunk of logits at a time where the vocabulary is large.

Not here: log-probabilities at a sampler's temperature, entropies and distributions (policy.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minirlhf.models.lora import Trunk
from minirlhf.models.policy import CHUNK_LOGITS


def summed_cross_entropy(model: Trunk, hidden: Tensor, ids: Tensor) -> Tensor:
    """Sum of the cross-entropies, 0-d nats, of ids (n,) under the distributions of hidden states (n,W).

    With several chunks each is computed again in the backward pass, so that the logits of one exist at a time.
    """
    size = max(1, CHUNK_LOGITS // model.config.vocab_size)
    if size >= len(ids):
        return _of_chunk(model, hidden, ids)
    parts = zip(torch.split(hidden, size), torch.split(ids, size), strict=True)
    return torch.stack([checkpoint(_of_chunk, model, *part, use_reentrant=False) for part in parts]).sum()


def _of_chunk(model: Trunk, hidden: Tensor, ids: Tensor) -> Tensor:
    logits = model.logits(hidden)  # (n,V)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, ids, reduction="sum")
