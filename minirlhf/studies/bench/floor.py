"""The floor of an iteration: seconds of its matrix products alone, measured on this machine at their real shapes."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from minirlhf.studies.bench.workloads import Workload

TURNS = 9  # timings of each product; the median counts


def products(work: Workload) -> list[tuple[int, tuple[int, int, int]]]:
    """Matrix products of an iteration: (times, (m, k, n)), each an (m, k) by (k, n) product.

    Lengths are means, without padding. Decoding: one token of all responses at a time. Scoring: prompt and response
    through policy and reference. Learning: the epochs forward and backward, the latter twice the work. The LM head
    sees response tokens only.
    """
    w, f, v, r = work.width, work.ff, work.vocab, round(work.mean_response)
    length = round((work.prompt_min + work.prompt_max) / 2) + r

    def passes(rows: int, head_rows: int, times: int) -> list[tuple[int, tuple[int, int, int]]]:
        layer = [(4 * work.layers, (rows, w, w)), (3 * work.layers, (rows, w, f))]
        return [(times * n, shape) for n, shape in [*layer, (1, (head_rows, w, v))]]

    decode = passes(work.responses, work.responses, r)
    score = passes(work.responses * length, work.responses * r, 2)
    updates = work.epochs * (work.responses // work.minibatch)
    learn = passes(work.minibatch * length, work.minibatch * r, 3 * updates)
    return [*decode, *score, *learn]


def floor_seconds(work: Workload, *, onednn: bool) -> float:
    """Seconds of all `products` of a workload, each measured on its own: by oneDNN, or by torch's default library."""
    with products_by(onednn=onednn), torch.no_grad():
        return sum(times * _seconds(torch.randn(m, k), torch.randn(n, k)) for times, (m, k, n) in products(work))


@contextmanager
def products_by(*, onednn: bool) -> Iterator[None]:
    """Send float32 products of the block to oneDNN, by allowing bf16, which it uses only if the CPU has such units."""
    flags = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = flags.fp32_precision
    flags.fp32_precision = "bf16" if onednn else before
    try:
        yield
    finally:
        flags.fp32_precision = before


def _seconds(a: Tensor, b: Tensor) -> float:
    F.linear(a, b)
    seconds = []
    for _ in range(TURNS):
        started = perf_counter()
        F.linear(a, b)
        seconds.append(perf_counter() - started)
    return sorted(seconds)[TURNS // 2]
