"""Library for the float32 matrix products of decoding on a CPU.

A decoding step multiplies a few rows by every weight of the model. For such products oneDNN, which torch ships beside
its default library, is faster by 1.2 to 2 times on CPUs with AVX-512 (docs/real-models.md), and slower on older ones.
torch takes it where float32 products may be computed with bfloat16 operands. oneDNN does that only on CPUs with
bfloat16 matrix units; anywhere else it computes in float32. Which of the two it does is measured once, so that no
product is less precise than float32.

Not here: products of learning and scoring, and of small models, which keep torch's own choice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

LARGE = 1 << 22  # weights of an LM head: with fewer, a step is bound by the calls of Python, not by its products
LENGTH = 512  # products in a sum of the measurement


@contextmanager
def decoding_products(head: Tensor) -> Iterator[None]:
    """Multiply float32 matrices by the library that is faster for a few rows, while the block runs.

    head (V,W): weight of the LM head of the model that decodes.
    """
    if head.device.type != "cpu" or head.dtype != torch.float32 or head.numel() < LARGE or not onednn_is_exact():
        yield
        return
    with _onednn():
        yield


@contextmanager
def _onednn() -> Iterator[None]:
    chosen = torch.backends.mkldnn.matmul
    before = chosen.fp32_precision
    chosen.fp32_precision = "bf16"
    try:
        yield
    finally:
        chosen.fp32_precision = before


@cache
def onednn_is_exact() -> bool:
    """True on CPUs with AVX-512 on which oneDNN computes float32 products in float32."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(16, LENGTH, generator=generator), torch.randn(64, LENGTH, generator=generator)
    with _onednn():
        found = x @ weight.T
    return is_float32(found, x, weight)


def is_float32(found: Tensor, x: Tensor, weight: Tensor) -> bool:
    """True if `found` (m,n) is x (m,LENGTH) times weight (n,LENGTH) transposed, as exact as float32 has it."""
    # Operands near 1 make a sum of size sqrt(LENGTH). Rounding them to bfloat16 (8 bits) moves it by 2e-3 of that,
    # TF32 (11 bits) by 3e-4, while sums in float32 are off by some 1e-6.
    return bool((found - x.double() @ weight.double().T).abs().max() <= 1e-5 * LENGTH**0.5)
