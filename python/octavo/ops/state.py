"""Recurrent layers: where states lie, convolution and scan."""

from __future__ import annotations

from torch import Tensor

from octavo.ops.backends import backend


def state_mapping(
    source: Tensor,
    target: Tensor,
    query_start: Tensor,
    row_slot: Tensor,
    seq_len: Tensor,
    block_table: Tensor,
    block_size: int,
) -> None:
    """Which block of a recurrent group each row reads its state from and which it writes it to, [R] int32
    both.

    query_start: [R + 1] int32; row_slot, seq_len: [R] int32; block_table: [slots, max_blocks] int32. The
    state after a position lies in the table entry of that position. A row from position 0 gets source -1.
    """
    backend(source).state_mapping(source, target, query_start, row_slot, seq_len, block_table, block_size)


def causal_conv1d(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    query_start: Tensor,
    source: Tensor,
    target: Tensor,
) -> None:
    """``out = silu(conv(x) + bias)``, each channel alone over its last K inputs.

    out, x: [N, C] of T; weight: [C, K], K 2..8; bias: [C]; state: [B, K - 1, C] of T, the inputs before a
    row's first token, oldest first; query_start: [R + 1] int32. Row r starts from the state in block
    ``source[r]`` ([R] int32; negative: from zero) and leaves the one after its last token in ``target[r]``
    (negative: the row is skipped). A row's result is the same bits in any batch and in any chunks.
    """
    backend(x).causal_conv1d(out, x, weight, bias, state, query_start, source, target)


def ssm_scan(
    out: Tensor,
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    skip: Tensor,
    state: Tensor,
    query_start: Tensor,
    source: Tensor,
    target: Tensor,
) -> None:
    """The recurrence of Mamba2 for each head, with d = softplus(dt + dt_bias):
    ``state[s, p] = state[s, p] * exp(-exp(a_log) * d) + d * b[s] * x[p]``, then
    ``out[p] = sum(c[s] * state[s, p]) + skip * x[p]``.

    out, x: [N, H, P]; dt: [N, H]; b, c: [N, G, S], S up to 1024; a_log, dt_bias, skip: [H], all of T; state:
    [B, H, S, P] float32; query_start, source and target as in ``causal_conv1d``. G divides H. CUDA takes
    S up to 512. Source: Dao and Gu 2024.
    """
    backend(x).ssm_scan(out, x, dt, b, c, a_log, dt_bias, skip, state, query_start, source, target)
