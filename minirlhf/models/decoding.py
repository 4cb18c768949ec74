"""One step of decoding, for all rows of a batch: a forward pass, a sample, and what follows from it.

Everything that a step reads or writes is a tensor of fixed shape at a fixed place, and nothing in it waits for the
device. On a GPU, where a small model's step is a thousand launches of almost no work, the step is therefore captured as
a CUDA graph and replayed: attention then reads the whole cache, with the empty slots masked. Everywhere else the same
step runs as it is, and reads the filled slots.

Not here: the pass over the prompts and the loop over steps (generate.py), and the cache (attention.py).
"""

import torch
from torch import Tensor

from minirlhf.models.attention import KVCache
from minirlhf.models.merged import decoding_model
from minirlhf.models.policy import Policy
from minirlhf.models.sampler import Sampler

FEW = 0.8  # finished rows are dropped once this share of the rows, or less, is still going


class Decoding:
    """State of B rows that are being decoded, R tokens at most.

    uniform (B,R): the random number of each token. Made here: ids (B,R), PAD where nothing was sampled yet; of the n
    rows that are still decoded, rows (n,) their numbers among the B, token (n,) the last one of each, alive (n,) True
    until a stop is sampled.
    """

    def __init__(self, policy: Policy, sampler: Sampler, cache: KVCache, uniform: Tensor, pad_id: int) -> None:
        (b, most), device = uniform.shape, uniform.device
        self.policy, self.sampler, self.cache, self.pad_id = policy, sampler, cache, pad_id
        self.captures = device.type == "cuda"
        if self.captures:
            cache.reading = cache.keys.shape[3]  # no shape changes from step to step
        self.ids = torch.full((b, most), pad_id, device=device)
        self.rows = torch.arange(b, device=device)
        self.uniform, self.chosen = uniform, self.ids.clone()  # of the n rows
        self.token = torch.zeros(b, dtype=torch.long, device=device)
        self.alive = torch.ones(b, dtype=torch.bool, device=device)
        self.at = torch.zeros(1, dtype=torch.long, device=device)  # index of the next token in a response
        self.model = decoding_model(policy.model, cache)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm = False

    def choose(self, hidden: Tensor) -> None:
        """Sample the next token of each row from its last hidden state (n,1,W)."""
        uniform = self.uniform.index_select(1, self.at).squeeze(1)
        token = self.sampler.sample(self.policy.logits(hidden)[:, 0], uniform)  # (n,)
        # A finished row goes on sampling until it is dropped; its tokens are replaced by PAD and nobody reads them.
        self.chosen.index_copy_(1, self.at, token.masked_fill(~self.alive, self.pad_id).unsqueeze(1))
        for stop in self.sampler.stops:
            self.alive &= token != stop
        self.token.copy_(token)
        self.at += 1

    def step(self) -> None:
        """Decode one more token of each row; on a GPU by a graph, once a step has run without one."""
        if not self.captures or not self._warm:
            self._step()
            self._warm = True  # libraries have set themselves up, which a capture does not allow
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step()  # is recorded, and does not run
        self._graph.replay()

    def _step(self) -> None:
        self.choose(self.model(self.token.unsqueeze(1), self.cache))

    def shrink(self) -> bool:
        """Drop finished rows if they are many; returns False if no row goes on. Waits for the device."""
        going, rows = int(self.alive.sum()), len(self.rows)
        if not going:
            return False
        # Dropping finished rows copies the cache, which a few of them are not worth. A graph is captured again for
        # each number of rows: then by halves.
        kept = going if going <= FEW * rows else rows
        if self.captures:
            kept = rows
            while kept % 2 == 0 and going <= kept // 2:
                kept //= 2
        if kept < rows:
            self._keep(self.alive.byte().argsort(descending=True, stable=True)[:kept])
        return True

    def _keep(self, index: Tensor) -> None:
        self.ids[self.rows] = self.chosen
        self.rows, self.uniform, self.chosen = self.rows[index], self.uniform[index], self.chosen[index]
        self.token, self.alive = self.token[index], self.alive[index]
        self.cache.keep(index)
        self._graph, self._warm = None, False

    def finish(self) -> Tensor:
        """Sampled ids (B,R) of all rows."""
        self.ids[self.rows] = self.chosen
        return self.ids
