"""Frozen weights in 8 or 4 bits: the projections of a backbone's blocks, packed and unpacked by bitsandbytes.

int8: whole numbers to 127 (after Dettmers et al., 2208.07339). nf4: 4-bit numbers at the quantiles of a normal
distribution (QLoRA, 2305.14314). Every 64 weights share a scale in float32, so that a weight takes 8.5 or 4.5 bits.
Activations, embeddings, norms, biases and the LM head keep their dtype. `_pack` and `_unpack` are all that knows the
library, so that another can take its place.

Not here: bitsandbytes' own modules. Linear8bitLt also rounds activations, and the last bit of one can decide where to;
Linear4bit computes in bfloat16 while no gradient is wanted, on CPUs that have it. Sampling and scoring then disagree:
by 0.9 and 0.1 nats about some token of 192 of SmolLM2 in float32, where these agree to 0.00002.
"""

import importlib.util
import logging
import math
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minirlhf.errors import UsageError
from minirlhf.models.transformer import Transformer

Method = Literal["int8", "nf4"]
METHODS: Final = ("int8", "nf4")
LIBRARY: Final = "bitsandbytes"
BLOCK: Final = 64  # weights, one after another in a row, that share a scale


def check_quantiser(method: str | None) -> None:
    """Refuse a method whose library is not installed (UsageError); None needs nothing."""
    if method is not None and importlib.util.find_spec(LIBRARY) is None:
        what = f"model.quantise = {method} needs {LIBRARY}"
        raise UsageError(what, todo="pip install 'minirlhf[quantise]', or leave it out")


def quantise_projections(model: Transformer, method: Method, device: torch.device) -> Transformer:
    """Pack the projections of all blocks in place and move the model to a device; returns the model, frozen.

    One projection after another, and its plain weight is dropped at once: the device never holds the plain model.
    """
    check_quantiser(method)
    for block in model.layers:
        for part in list(block.modules()):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, QuantisedLinear(linear, method, device))
    return model.to(device).requires_grad_(False)


def is_quantised(model: nn.Module) -> bool:
    """True if some weights of a model are packed."""
    return any(isinstance(module, QuantisedLinear) for module in model.modules())


def count_weights(model: nn.Module) -> int:
    """Number of weights of a model, packed ones included."""
    packed = (module.shape.numel() for module in model.modules() if isinstance(module, QuantisedLinear))
    return sum(packed) + sum(parameter.numel() for parameter in model.parameters())


class QuantisedLinear(nn.Module):
    """Frozen linear map whose weight (outputs, inputs) is packed, and unpacked for each product.

    Buffers: `packed`, the numbers in 8 or 4 bits, and `scale`, float32.
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, method: Method, device: torch.device) -> None:
        super().__init__()
        self.method, self.shape = method, linear.weight.shape
        packed, scale = _pack(linear.weight.detach().to(device), method)
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Weight (outputs, inputs) in a dtype, as the packed numbers give it."""
        return _unpack(self.packed, self.scale, self.method, self.shape, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (...,inputs) -> (...,outputs), in the dtype of x."""
        out: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]  # torch gives apply no types
        return out if self.bias is None else out + self.bias


class _Product(torch.autograd.Function):
    """x W^T with a packed W, unpacked again in the backward pass: autograd would keep all layers' plain weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: QuantisedLinear) -> Tensor:
        ctx.linear = linear
        return nn.functional.linear(x, linear.weight(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.linear.weight(grad.dtype), None


def _pack(weight: Tensor, method: Method) -> tuple[Tensor, Tensor]:
    """Numbers and scales of a weight (outputs, inputs)."""
    functional = _library()
    if method == "int8":
        # The function gives each row a scale: a row of a block. float16 is the only dtype that it takes on a GPU.
        rows = weight.half().reshape(-1, math.gcd(weight.numel(), BLOCK))
        packed, scale, _ = functional.int8_vectorwise_quant(rows)
        return packed, scale
    packed, state = functional.quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
    return packed, state.absmax


def _unpack(packed: Tensor, scale: Tensor, method: Method, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Weight (outputs, inputs) of numbers and scales, in a dtype."""
    if method == "int8":
        return (packed * (scale / 127).unsqueeze(1)).view(shape).to(dtype)
    functional = _library()
    # A row for each block: on the CPU bitsandbytes gives blocks that go over the end of a row the scale of another one.
    size = shape.numel()
    blocks = (size // BLOCK, BLOCK) if size % BLOCK == 0 else (1, size)
    state = functional.QuantState(scale, shape=blocks, dtype=dtype, blocksize=BLOCK, quant_type="nf4")
    weight: Tensor = functional.dequantize_4bit(packed, state)
    return weight.view(shape)


def _library() -> Any:
    """Functions of bitsandbytes, imported when they are first used: that takes seconds."""
    # It warns on some CPUs of a kernel for bfloat16 that it cannot load, which is not used here.
    logging.getLogger(LIBRARY).setLevel(logging.ERROR)
    from bitsandbytes import functional

    return functional
