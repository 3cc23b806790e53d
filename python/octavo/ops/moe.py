"""Mixtures of experts: routing, grouping, products of groups, sums."""

from __future__ import annotations

from torch import Tensor

from octavo.ops.backends import backend


def moe_route(
    ids: Tensor,
    weights: Tensor,
    logits: Tensor,
    sigmoid: bool,
    renormalize: bool,
    bias: Tensor | None = None,
    *,
    groups: int = 1,
    top_groups: int = 1,
    group_best: int = 1,
    scale: float = 1.0,
) -> None:
    """The k experts of each token with the largest scores, falling, into ``ids`` [N, k] int32, and their
    weights into ``weights`` [N, k] float32, from ``logits`` [N, E] float32.

    Scores are the softmax over all experts, or the sigmoid of each. They are the weights: ``renormalize``
    divides them by the sum of the k, ``scale`` multiplies them. ``bias`` [E] float32 is added to the scores
    that are compared, not to weights. Of ``groups`` runs of neighbouring experts those ``top_groups`` are
    chosen from whose ``group_best`` largest compared scores have the largest sums. Lower ids first among
    equals. A row with NaN gets NaN weights. CUDA takes up to 1024 experts. Source of groups and bias:
    DeepSeek-V2 and -V3 (2024).
    """
    backend(logits).moe_route(
        ids, weights, logits, sigmoid, renormalize, bias, groups, top_groups, group_best, scale
    )


def moe_group(place: Tensor, token: Tensor, start: Tensor, ids: Tensor) -> None:
    """Sorts the pairs of token and expert of ``ids`` [N, k] int32 by expert.

    Pair (n, j) goes to ``place[n, j]`` [N, k] int32, ``token`` [N * k] int32 names the token at each place,
    and expert e owns the places ``start[e]:start[e + 1]`` ([E + 1] int32).
    """
    backend(ids).moe_group(place, token, start, ids)


def grouped_linear(out: Tensor, x: Tensor, weight: Tensor, start: Tensor, bias: Tensor | None = None) -> None:
    """``out = x weight[e]^T + bias[e]`` for the rows ``start[e]:start[e + 1]`` of each expert, few of them.

    out: [P, M], x: [P, K], weight: [E, M, K], bias: [E, M] of T; start: [E + 1] int32 from 0 to P. As
    ``linear`` it reads each weight that is needed once. CUDA takes any number of rows of up to 1024 experts,
    and an element has the same bits in any company.
    """
    backend(x).grouped_linear(out, x, weight, start, bias)


def moe_combine(out: Tensor, rows: Tensor, place: Tensor, weights: Tensor) -> None:
    """``out[n]`` = the sum over j of ``weights[n, j] * rows[place[n, j]]``, in the order of j.

    out: [N, H], rows: [P, H] of T; place: [N, k] int32; weights: [N, k] float32.
    """
    backend(rows).moe_combine(out, rows, place, weights)
