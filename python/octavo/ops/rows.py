"""Ops on the rows of a step: norms, rotations, activations, products, token ids."""

from __future__ import annotations

from torch import Tensor

from octavo.ops.backends import backend

# What a product leaves of the norm of its sum for the next one: the norm's weight [N] of T and offset, scaled
# [M, N] of T, squares [M, 4 ceil(N / 256)] float32.
HalfNorm = tuple[Tensor, float, Tensor, Tensor]


def rms_norm(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    weight_offset: float = 0.0,
    invariant: bool = False,
) -> None:
    """``out = x / sqrt(mean(x^2) + eps) * (weight + weight_offset)`` over the last dimension.

    out, x: [N, H] or [N, heads, H] of T (``out`` may be ``x``); weight: [H] of T. Gemma's offset is 1. A row
    is the same bits in any company: on the CPU always, on CUDA if ``invariant``.
    """
    backend(x).rms_norm(out, x, weight, eps, weight_offset, invariant)


def add_rms_norm(
    out: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    weight_offset: float = 0.0,
    invariant: bool = False,
) -> None:
    """``residual += x`` (rounded to T), then ``out = rms_norm(residual)``. All [N, H] of T; ``out`` may be
    ``x``.
    """
    backend(x).add_rms_norm(out, x, residual, weight, eps, weight_offset, invariant)


def gated_rms_norm(out: Tensor, x: Tensor, gate: Tensor, weight: Tensor, groups: int, eps: float) -> None:
    """``y = x * silu(gate)``, then ``out = y / sqrt(mean(y^2) + eps) * weight``, the mean over each of
    ``groups`` runs of columns.

    out, x, gate: [N, I] of T (``out`` may be ``x``); weight: [I] of T.
    """
    backend(x).gated_rms_norm(out, x, gate, weight, groups, eps)


def rope(q: Tensor, k: Tensor, position: Tensor, cos_sin: Tensor, interleaved: bool) -> None:
    """Rotates the first R dimensions of every head of ``q`` [N, Hq, D] and ``k`` [N, Hk, D] in place.

    position: [N] int32; cos_sin: [max_pos, R] float32, R/2 cosines then R/2 sines. ``interleaved`` rotates
    neighbouring pairs (GPT-J), otherwise the two halves are rotated against each other (neox). Source: Su et
    al. 2021.
    """
    backend(q).rope(q, k, position, cos_sin, interleaved)


def silu_mul(out: Tensor, gate_up: Tensor) -> None:
    """``out = silu(gate) * up`` with ``gate_up`` [N, 2I] = [gate | up]; out: [N, I] of T."""
    backend(out).silu_mul(out, gate_up)


def gelu_tanh_mul(out: Tensor, gate_up: Tensor) -> None:
    """``out = gelu(gate, tanh approximation) * up`` with ``gate_up`` [N, 2I] = [gate | up]; out: [N, I] of
    T.
    """
    backend(out).gelu_tanh_mul(out, gate_up)


def clamped_swiglu(out: Tensor, gate_up: Tensor, alpha: float, limit: float) -> None:
    """``out = (clamp(up, -limit, limit) + 1) * g * sigmoid(alpha * g)``, g the gate, at most ``limit``.

    ``gate_up`` [N, 2I] = [gate | up]; out: [N, I] of T.
    """
    backend(out).clamped_swiglu(out, gate_up, alpha, limit)


def linear(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    weight_ready: bool = False,
    norm: Tensor | None = None,
    eps: float = 1e-6,
    norm_offset: float = 0.0,
    gate: str | None = None,
    add: bool = False,
    squares: Tensor | None = None,
    leaves: HalfNorm | None = None,
) -> None:
    """``out = x weight^T + bias`` for few rows: it reads the weight once, at the speed of memory.

    out: [M, N], x: [M, K], weight: [N, K], bias: [N] of T. A row's result is the same bits for any M (on CUDA
    up to 16) and any number of threads. CUDA takes bfloat16 and float16, M up to 16 and K a multiple of 8.
    With compute capability 9.0 it takes M up to 512, from 17 on with K a multiple of 64, N of 16, out and
    bias on 16 bytes, and half a norm in place of one. With ``weight_ready`` (nothing enqueued before writes
    weight, bias or norm) it reads ahead while the kernel in front of it still runs.

    On the way: ``norm`` [K] makes the input ``rms_norm(x)`` with that weight, ``eps`` and ``norm_offset``;
    ``gate`` (``silu`` or ``gelu_tanh``) takes the product as [gate | up] and stores ``act(gate) * up``
    [M, N / 2]; ``add`` adds to what ``out`` holds. Each rounds to T where the op that it stands for would
    have stored.

    From 17 rows on, on CUDA and in bfloat16, a norm stands between two products, half of it in each. With
    ``leaves`` (not with a gate) the first one stores ``scaled = out * (norm + offset)`` too, rounded, and the
    sums of the squares of 64 columns of ``out`` each. The second one has ``scaled`` as x and its ``squares``
    [M, 4 ceil(K / 256)] float32, and divides its product by ``sqrt(sum(squares) / K + eps)`` before anything
    else happens to it. As many numbers are rounded as with ``norm``, but others.
    """
    backend(x).linear(out, x, weight, bias, weight_ready, norm, eps, norm_offset, gate, add, squares, leaves)


def fill_tokens(token_id: Tensor, query_start: Tensor, row_slot: Tensor, last_token: Tensor) -> None:
    """Replaces each -1 in ``token_id`` [N] int32 by what its row's slot sampled last, in place.

    query_start: [R + 1], row_slot: [R], last_token: [slots], all int32. A last token of -1, of a row that
    failed, becomes 0: what the row computes is dropped, but its embedding must exist.
    """
    backend(token_id).fill_tokens(token_id, query_start, row_slot, last_token)


def keep_tokens(
    last_token: Tensor, token: Tensor, sample_row: Tensor, row_slot: Tensor, landing: Tensor | None = None
) -> None:
    """``last_token[row_slot[sample_row]] = token``: what the next step's ``fill_tokens`` takes.

    last_token: [slots], token and sample_row: [S], row_slot: [R], all int32. Of several samples of a row one
    stays. landing: [1] int64, the address of S int32 in host memory that the backend can write, where all of
    ``token`` goes too; 0: nowhere.
    """
    backend(token).keep_tokens(last_token, token, sample_row, row_slot, landing)
