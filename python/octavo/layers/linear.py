"""Matrix products, several of one input as one, with the norm before them and the gate or sum behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from octavo import ops
from octavo.layers import invariance
from octavo.layers.layer import Layer
from octavo.layers.norm import Input, Left, Normed, RMSNorm, tensor_of

# Rows of x up to which ops.linear beats torch on a CPU: it reads the weight at the speed of memory with every
# thread, where MKL's float32 product of one row uses one thread. Above, torch's blocking wins.
FEW_ROWS = {torch.float32: 16, torch.bfloat16: 4}
# On an H200: up to 8 rows, and up to 16 where the weight is so short that a BLAS leaves multiprocessors idle
# (bench/results/ops_h200.txt). The vocabulary's rows are left to the BLAS.
_FEW_CUDA_ROWS = ((8, 32768), (16, 4096))  # rows of x, rows of the weight
_MOST_FEW_ROWS = 16  # of the product that norms x on its way; beyond, it takes what is normed already
# From 17 rows on by warpgroups, on compute capability 9.0 alone: up to 64 rows, and up to 256 where the
# weight is short or the product opens a gate, which saves a kernel and is worth it longest where the weight
# is not long (bench/results/linear_h200.txt). The vocabulary's rows are left to the BLAS here too.
_WIDE_CUDA_ROWS = ((64, 32768), (256, 1024))
_WIDE_GATED_CUDA_ROWS = ((256, 65536), (512, 8192))
# A norm between two of these products need be no kernel (ADR 34), which is worth more rows of x where they
# are short. With long ones what is left beside the residual costs more than the kernel of the norm.
_MOST_HALF_NORM_COLUMNS = 2048
_WIDE_HALF_NORM_CUDA_ROWS = ((256, 8192),)
_SQUARES_COLUMNS = 256  # of x, whose squares are four sums

_GATES = {"silu": ops.silu_mul, "gelu_tanh": ops.gelu_tanh_mul}


def product(
    x: Input, weight: torch.Tensor, bias: torch.Tensor | None = None, gate: str | None = None
) -> torch.Tensor:
    """Return x W^T + b: x [M, K], weight [N, K], bias [N] -> [M, N], by whichever product is faster.

    With a gate (silu or gelu_tanh) the product is [gate | up], and act(gate) * up [M, N / 2] is returned.
    """
    rows = x.residual if isinstance(x, Normed) else x
    half = x.half if isinstance(x, Normed) else None
    more = () if half is None else _WIDE_HALF_NORM_CUDA_ROWS
    if not streams(rows, weight, opens=gate is not None, more=more):
        return gated(F.linear(tensor_of(x), weight, bias), gate)
    columns = weight.shape[0] if gate is None else weight.shape[0] // 2
    out = rows.new_empty((rows.shape[0], columns))
    if isinstance(x, Normed) and half is not None:
        ops.linear(out, half[0], weight, bias, True, None, x.norm.eps, gate=gate, squares=half[1])
    elif isinstance(x, Normed) and (rows.is_cpu or rows.shape[0] <= _MOST_FEW_ROWS):
        norm = x.norm
        ops.linear(out, rows, weight, bias, True, norm.weight, norm.eps, norm.offset, gate)
    else:
        # The loader wrote the weight long ago.
        ops.linear(out, tensor_of(x), weight, bias, weight_ready=True, gate=gate)
    return out


def add_product(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    after: RMSNorm | None = None,
) -> Left:
    """Add x W^T + b to the residual [M, N], or return it: then the next norm adds it on its way.

    Where the norm that comes `after` is known, half of it may be made on the way; it is returned then.
    """
    if not streams(x, weight):
        return F.linear(x, weight, bias)
    if after is None or not _leaves_half(residual):
        ops.linear(residual, x, weight, bias, weight_ready=True, add=True)
        return None
    scaled, (count, columns) = torch.empty_like(residual), residual.shape
    squares = residual.new_empty((count, -(-columns // _SQUARES_COLUMNS) * 4), dtype=torch.float32)
    leaves = (after.weight, after.offset, scaled, squares)
    ops.linear(residual, x, weight, bias, weight_ready=True, add=True, leaves=leaves)
    return Normed(after, residual, (scaled, squares))


def _leaves_half(residual: torch.Tensor) -> bool:
    rows, columns = residual.shape
    wide = not residual.is_cpu and rows > _MOST_FEW_ROWS and columns <= _MOST_HALF_NORM_COLUMNS
    return wide and residual.dtype == torch.bfloat16


def gated(gate_up: torch.Tensor, gate: str | None) -> torch.Tensor:
    """Return act(gate) * up [M, I] of [gate | up] [M, 2I]; without a gate, what was given."""
    if gate is None:
        return gate_up
    out = gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))
    _GATES[gate](out, gate_up)
    return out


def invariant_product(
    x: Input, weight: torch.Tensor, bias: torch.Tensor | None = None, gate: str | None = None
) -> torch.Tensor:
    """As product(), but a row's bits are the same whatever rows stand beside it."""
    rows = tensor_of(x)
    out = rows.new_empty((rows.shape[0], weight.shape[0]))
    ops.gemm(out, rows, weight, bias)
    return gated(out, gate)


def chosen_product() -> Callable[..., torch.Tensor]:
    """The product of a layer that is made now."""
    return invariant_product if invariance.is_wanted() else product


def streams(
    x: torch.Tensor, weight: torch.Tensor, opens: bool = False, more: Sequence[tuple[int, int]] = ()
) -> bool:
    """Whether ops.linear takes the product of x and a weight, and is the faster one; `opens`: a gate.

    `more` are limits (rows of x, rows of the weight) up to which what it does besides makes it faster.
    """
    if x.is_cpu:
        return x.shape[0] <= FEW_ROWS.get(x.dtype, 0)
    if not x.is_cuda or x.dtype == torch.float32 or x.shape[1] % 8 or not ops.has_cuda():
        return False
    if _within(_FEW_CUDA_ROWS, x, weight):
        return True
    limits = _WIDE_GATED_CUDA_ROWS if opens else _WIDE_CUDA_ROWS
    if x.shape[0] <= _MOST_FEW_ROWS or not _within((*limits, *more), x, weight):
        return False
    # What the copy engine and the products of a warpgroup take: the rule of TakesWide in cuda/linear.
    fits = x.shape[1] % 64 == 0 and weight.shape[0] % 16 == 0 and x.stride(0) % 8 == 0
    return fits and _has_wgmma(x.device)


def _within(limits: Sequence[tuple[int, int]], x: torch.Tensor, weight: torch.Tensor) -> bool:
    return any(x.shape[0] <= rows and weight.shape[0] <= most for rows, most in limits)


@cache
def _has_wgmma(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) == (9, 0)


_WEIGHTS_ON: ContextVar[str | None] = ContextVar("weights_on", default=None)  # None: torch's device


@contextmanager
def weights_without_memory() -> Iterator[None]:
    """Linear layers that are made within have weights of a shape alone, until layers/quantized.py says what
    they are: a model that will be held in 8 bits never takes the memory of 16.
    """
    token = _WEIGHTS_ON.set("meta")
    try:
        yield
    finally:
        _WEIGHTS_ON.reset(token)


class Projection(Layer):
    """A linear layer in some format: x [N, in] -> [N, out]. This is how those do that can only multiply."""

    def gated(self, x: Input, gate: str) -> torch.Tensor:
        """Take the product as [gate | up] and return act(gate) * up: [N, out / 2]."""
        return gated(self(x), gate)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> Left:
        """Add the product to the residual [N, out], or return it: then the next norm adds it."""
        out: torch.Tensor = self(x)
        return out

    def leads_to(self, norm: RMSNorm) -> None:
        """Say that what comes after `add_to` is this norm of the residual."""


class Linear(Projection):
    """y = x W^T + b: x [N, in] -> [N, out].

    Parameters are left uninitialised: the loader fills every one or refuses the checkpoint.
    """

    bias: nn.Parameter | None

    def __init__(self, in_size: int, out_size: int, *, bias: bool = False, dtype: torch.dtype) -> None:
        super().__init__()
        weight = torch.empty(out_size, in_size, dtype=dtype, device=_WEIGHTS_ON.get())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_size, dtype=dtype), requires_grad=False) if bias else None
        self.product = chosen_product()
        self.after: tuple[RMSNorm, ...] = ()  # a module would be a part of this one

    def forward(self, x: Input) -> torch.Tensor:
        return self.product(x, self.weight, self.bias)

    def gated(self, x: Input, gate: str) -> torch.Tensor:
        return self.product(x, self.weight, self.bias, gate)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> Left:
        if self.product is not product:
            return self.product(x, self.weight, self.bias)
        return add_product(residual, x, self.weight, self.bias, *self.after)

    def leads_to(self, norm: RMSNorm) -> None:
        self.after = (norm,)


class FusedLinear(Linear):
    """Projections of one input as one product: their rows stand below each other in one weight.

    `parts` lists (name in the checkpoint, rows). A part named q_proj is read from q_proj.weight beside where
    this module stands: `layers.0.self_attn.qkv_proj` takes `layers.0.self_attn.q_proj.weight`.
    """

    def __init__(
        self, in_size: int, parts: Sequence[tuple[str, int]], *, bias: bool = False, dtype: torch.dtype
    ) -> None:
        super().__init__(in_size, sum(rows for _, rows in parts), bias=bias, dtype=dtype)
        self.parts = tuple(parts)
