"""Linear layers in 8 bits: e4m3 weights and inputs with float32 scales (Micikevicius et al., 2022).

A weight has one scale for each of its rows, so parts of a fused projection, and checkpoints with one scale a
tensor, need nothing of their own. An input has one scale for each token: its largest magnitude becomes the
largest number of the format. Products of e4m3 numbers are summed in float32, then multiplied by both scales.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from octavo.errors import ModelError, WeightsError
from octavo.hf.quantization import Quantization
from octavo.layers.linear import Linear, Projection, product
from octavo.layers.norm import Input, tensor_of
from octavo.weights.source import Source

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
# Numbers of a weight that are widened at a time on a CPU: 1 MiB of float32 stays in the cache of a core until
# the product has read it.
_PIECE = 1 << 18
_SCALES = (("weight_scale", "input_scale"), ("weight_scale_inv", "activation_scale"))  # checkpoints' names
_GRID = 16  # cuBLASLt multiplies FP8 matrices of whole multiples of it
_FP8_CAPABILITY = (8, 9)
_ROW_SCALES_CAPABILITY = (9, 0)  # where torch scales rows inside the product, in bfloat16


def quantize_rows(x: torch.Tensor, scale: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x [M, K] / s as e4m3 and s [M] float32: `scale` [] for all, or what brings each row into range.

    What a given scale leaves too large is clamped. NaN stays NaN.
    """
    if scale is None:
        # Not divided: torch divides by a number on a CPU and multiplies with its inverse on a GPU.
        scales = x.abs().amax(1).float().mul_(1 / FP8_MAX).clamp_min_(torch.finfo(torch.float32).tiny)
    else:
        scales = scale.expand(x.shape[0])
    return (x.float() / scales[:, None]).clamp_(-FP8_MAX, FP8_MAX).to(FP8), scales


def widen(weight: torch.Tensor) -> torch.Tensor:
    """Return float32 numbers 2^-8 times those of an e4m3 tensor that holds no NaN, exactly.

    The bits of an e4m3 number, shifted, are those of a float16 number: whole vectors at a time, 16 times as
    fast as torch converts e4m3.
    """
    bits = weight.view(torch.int8).to(torch.int16).bitwise_left_shift_(7)
    return bits.bitwise_and_(~(1 << 14)).view(torch.float16).float()  # the sign was extended over bit 14


def cpu_product(
    x: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor
) -> torch.Tensor:
    """Return the scaled product, float32: x [M, K] and weight [N, K] e4m3, x_scale [M], weight_scale [N].

    A few rows of the weight are widened at a time; the weight never exists in another format as a whole.
    """
    rows, wide = max(_PIECE // weight.shape[1], 1), x.float()
    out = wide.new_empty((x.shape[0], weight.shape[0]))
    for first, piece in enumerate(torch.split(weight, rows)):
        out[:, first * rows : first * rows + piece.shape[0]] = product(wide, widen(piece))
    return out.mul_(weight_scale).mul_((x_scale * 256.0)[:, None])


def device_product(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    *,
    rows_inside: bool,
) -> torch.Tensor:
    """The same by torch._scaled_mm, which is cuBLASLt on CUDA.

    `rows_inside`: the product applies the scales and returns bfloat16; otherwise they are applied to its
    float32 result.
    """
    if rows_inside:
        scales = (x_scale[:, None].contiguous(), weight_scale[None, :])
        return torch._scaled_mm(x, weight.t(), *scales, out_dtype=torch.bfloat16)
    one = weight_scale.new_ones(())
    out = torch._scaled_mm(x, weight.t(), one, one, out_dtype=torch.float32)
    return out.mul_(weight_scale).mul_(x_scale[:, None])


class Fp8Linear(Projection):
    """y = x W^T + b in 8 bits, in place of a Linear or FusedLinear, whose parts and bias it takes."""

    bias: nn.Parameter | None
    input_scale: nn.Parameter | None

    def __init__(self, linear: Linear, quantization: Quantization) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        self.parts: tuple[tuple[str, int], ...] | None = getattr(linear, "parts", None)
        self.weight = _parameter(rows, columns, dtype=FP8)
        self.weight_scale = _parameter(rows, dtype=torch.float32)
        count = len(self.parts or ("",))
        self.input_scale = _parameter(count, dtype=torch.float32) if quantization.static else None
        self.bias = linear.bias
        self.stored = quantization.stored
        self.rows_inside = False
        if self.weight.is_cuda:
            capability = _check_device(rows, columns)
            self.rows_inside = capability >= _ROW_SCALES_CAPABILITY and linear.weight.dtype == torch.bfloat16

    def forward(self, x: Input) -> torch.Tensor:
        x = tensor_of(x)
        # Parts have one input, whose scale is the largest of theirs, so that nothing is clamped.
        given = None if self.input_scale is None else self.input_scale.amax()
        q, scale = quantize_rows(x, given)
        if x.is_cpu:
            out = cpu_product(q, scale, self.weight, self.weight_scale)
        else:
            out = device_product(q, scale, self.weight, self.weight_scale, rows_inside=self.rows_inside)
        if self.bias is not None:
            out.add_(self.bias)
        return out.to(x.dtype)

    def spellings(self, path: str) -> list[dict[str, Source]]:
        """Return every way in which a checkpoint may hold these weights, by name."""
        return [self._names(path, *names) for names in (_SCALES if self.stored else _SCALES[:1])]

    def _names(self, path: str, weight_scale: str, input_scale: str) -> dict[str, Source]:
        parent, own = path.rpartition(".")[::2]
        names: dict[str, Source] = {}
        first = 0
        for index, (part, rows) in enumerate(self.parts or ((own, self.weight.shape[0]),)):
            at = f"{parent}.{part}"
            weight, scales = self.weight.narrow(0, first, rows), self.weight_scale.narrow(0, first, rows)
            if self.stored:
                names[f"{at}.weight"] = Source(weight, tuple(weight.shape))
                name = f"{at}.{weight_scale}"
                names[name] = _scale_source(name, scales, (rows, 1), (rows,))
            else:
                quantize = partial(_quantize_into, weight, scales)
                names[f"{at}.weight"] = Source(weight, tuple(weight.shape), write=quantize)
            if self.input_scale is not None:
                name = f"{at}.{input_scale}"
                names[name] = _scale_source(name, self.input_scale.narrow(0, index, 1))
            if self.bias is not None:
                bias = self.bias.narrow(0, first, rows)
                names[f"{at}.bias"] = Source(bias, tuple(bias.shape))
            first += rows
        return names


def _parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


def _scale_source(name: str, scales: torch.Tensor, *shapes: tuple[int, ...]) -> Source:
    """A scale for each of these, or one for all."""

    def write(stored: torch.Tensor) -> None:
        signed = stored >= 0 if shapes else stored > 0  # a row of zeros may have no scale, an input must
        if not (stored.isfinite() & signed).all():
            remedy = "finite numbers above 0 are expected, download it again"
            raise WeightsError(f"{name} holds a scale of {stored.min():g} to {stored.max():g}: {remedy}")
        scales.copy_(stored.flatten())

    return Source(scales, (), also=((1,), *shapes), write=write)


def _quantize_into(weight: torch.Tensor, scales: torch.Tensor, stored: torch.Tensor) -> None:
    """Quantize a 16 or 32-bit weight where it will be, a few rows at a time."""
    rows = max(_PIECE // weight.shape[1], 1)
    pieces = (torch.split(tensor, rows) for tensor in (weight, scales, stored))
    for target, scale, piece in zip(*pieces):
        q, found = quantize_rows(piece.to(weight.device))
        target.copy_(q)
        scale.copy_(found)


def _check_device(rows: int, columns: int) -> tuple[int, int]:
    """Return what the current GPU can do. Raises ModelError if that is not enough."""
    capability: tuple[int, int] = torch.cuda.get_device_capability()
    if capability < _FP8_CAPABILITY:
        have = ".".join(map(str, capability))
        raise ModelError(
            f"this GPU has compute capability {have}, FP8 needs 8.9: use device='cpu' or a 16-bit model"
        )
    if rows % _GRID or columns % _GRID:
        raise ModelError(
            f"a linear layer of {rows} x {columns} cannot be FP8 on a GPU, which needs multiples of {_GRID}: "
            "use device='cpu' or a 16-bit model"
        )
    return capability
