"""Library for the float32 products of a decoding step on a CPU.

A decoding step multiplies one token a row by every weight of the model. For a few rows and a large weight oneDNN, which
torch ships beside its default library, is faster by 1.2 to 2 times on CPUs with AVX-512 (docs/real-models.md), and not
on older ones. torch takes it where float32 products may be computed with bfloat16 operands. oneDNN does that only on
CPUs with bfloat16 matrix units; anywhere else it computes in float32. Which of the two it does is measured once, so
that no product is less exact than in float32.

Not here: products of many rows and of small weights, which keep torch's own choice. Learning and scoring then multiply
by the same library, and the ratio of a first update is 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

LARGE = 1 << 19  # elements of a weight: smaller ones are multiplied as fast by the default library
LENGTH = 512  # products in a sum of the measurement


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (...,W) times weight (V,W) transposed, and bias (V,): (...,V); in a decoding step x is (B,1,W)."""
    if x.dim() != 3 or x.shape[1] != 1:
        return F.linear(x, weight, bias)
    rows = x[:, 0]  # torch would copy the weight for each row of a (B,1,W) that is a slice of something longer
    with onednn() if weight.numel() >= LARGE and _measured(weight) else nullcontext():
        return F.linear(rows, weight, bias).unsqueeze(1)


def _measured(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and onednn_is_exact()


@contextmanager
def onednn() -> Iterator[None]:
    """Let oneDNN multiply float32 matrices while the block runs."""
    chosen = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at run time
    before = chosen.fp32_precision
    chosen.fp32_precision = "bf16"
    try:
        yield
    finally:
        chosen.fp32_precision = before


@cache
def onednn_is_exact() -> bool:
    """True on CPUs with AVX-512 on which oneDNN computes float32 products in float32."""
    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not there or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(16, LENGTH, generator=generator), torch.randn(64, LENGTH, generator=generator)
    with onednn():
        return is_float32(x @ weight.T, x, weight)


def is_float32(found: Tensor, x: Tensor, weight: Tensor) -> bool:
    """True if `found` (m,n) is x (m,LENGTH) times weight (n,LENGTH) transposed, as exact as float32 has it."""
    # Operands near 1 make a sum of size sqrt(LENGTH). Rounding them to bfloat16 (8 bits) moves it by 2e-3 of that,
    # TF32 (11 bits) by 3e-4, while sums in float32 are off by some 1e-6.
    return bool((found - x.cpu().double() @ weight.cpu().double().T).abs().max() <= 1e-5 * LENGTH**0.5)
