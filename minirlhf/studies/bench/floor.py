"""What the machine could do: the matrix products of an iteration alone, measured at their real shapes."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from minirlhf.studies.bench.workloads import Workload

TURNS = 9  # timings of a product, of which the median counts


def products(work: Workload) -> list[tuple[int, tuple[int, int, int]]]:
    """(how often, (m, k, n)) of the matrix products of an iteration, nothing else: what a floor is measured from.

    Lengths are the means: no padding counts. Decoding a token of all responses; prompt and response through policy and
    reference; forward and backward (twice the work) of the epochs. The LM head sees response tokens only.
    """
    w, f, v, r = work.width, work.ff, work.vocab, round(work.mean_response)
    length = round((work.prompt_min + work.prompt_max) / 2) + r

    def passes(rows: int, heads: int, times: int) -> list[tuple[int, tuple[int, int, int]]]:
        layer = [(4 * work.layers, (rows, w, w)), (3 * work.layers, (rows, w, f))]
        return [(times * n, shape) for n, shape in [*layer, (1, (heads, w, v))]]

    decode = passes(work.responses, work.responses, r)
    score = passes(work.responses * length, work.responses * r, 2)
    updates = work.epochs * (work.responses // work.minibatch)
    learn = passes(work.minibatch * length, work.minibatch * r, 3 * updates)
    return [*decode, *score, *learn]


def floor_seconds(work: Workload, *, onednn: bool) -> float:
    """Seconds of those products, each measured on its own: by oneDNN, or by the library that float32 products go to."""
    with products_by(onednn=onednn), torch.no_grad():
        return sum(times * _seconds(torch.randn(m, k), torch.randn(n, k)) for times, (m, k, n) in products(work))


@contextmanager
def products_by(*, onednn: bool) -> Iterator[None]:
    """oneDNN takes float32 products when it may round them to bf16, which it does only where the CPU has the units."""
    flags = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = flags.fp32_precision
    flags.fp32_precision = "bf16" if onednn else before
    try:
        yield
    finally:
        flags.fp32_precision = before


def _seconds(a: Tensor, b: Tensor) -> float:
    F.linear(a, b)
    found = []
    for _ in range(TURNS):
        started = perf_counter()
        F.linear(a, b)
        found.append(perf_counter() - started)
    return sorted(found)[TURNS // 2]
