"""Ops whose rows never depend on their company, where the usual ones are a BLAS's and torch's."""

from __future__ import annotations

from torch import Tensor

from octavo.ops.backends import backend


def gemm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """``out = x weight^T + bias`` for any number of rows, each of them the same bits in any company.

    out: [M, N], x: [M, K], weight: [N, K], bias: [N] of T. An element is a function of its row of x, its row
    of the weight and its bias: not of M or of the number of threads. CUDA takes bfloat16 and float16, K a
    multiple of 8 and rows on 16 bytes.
    """
    backend(x).gemm(out, x, weight, bias)


def soft_cap(x: Tensor, cap: float) -> None:
    """``x = cap * tanh(x / cap)`` in place, x [M, N] of T. CPU only: torch's kernel on CUDA has no tails that
    would be computed by another function.
    """
    backend(x).soft_cap(x, cap)
