"""Attention over the paged cache. Models see AttentionContext; the runner says which rows it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

import torch
from torch import nn

from octavo import ops
from octavo.hf_config import ModelSpec
from octavo.layers.layer import Layer
from octavo.layers.linear import FusedLinear, Linear
from octavo.layers.norm import Input, Left, RMSNorm
from octavo.weights.kv_scales import KvScales


class LayerState(NamedTuple):
    """What a recurrent layer keeps of every block, and which blocks the rows of a step read and write."""

    conv: torch.Tensor  # [B, K - 1, C] of the model's dtype: the last inputs of the convolution
    scan: torch.Tensor  # [B, H, S, P] float32
    source: torch.Tensor  # [R] int32; -1: a row begins from nothing
    target: torch.Tensor  # [R] int32


class Rotation(NamedTuple):
    """What is done to queries and keys before they are stored: a norm of each head, then a rotation."""

    position: torch.Tensor  # [N] int32
    table: torch.Tensor  # see ops.rope
    q_norm: torch.Tensor | None = None  # [D]; both or neither
    k_norm: torch.Tensor | None = None
    eps: float = 1e-6
    offset: float = 0.0  # of the norms' weights


class EncodedRows(NamedTuple):
    """What the tokens of a step attend to in the group of an encoder's output: each is a row of its own with
    one query, behind which nothing is hidden.
    """

    row_slot: torch.Tensor  # [N] int32
    query_start: torch.Tensor  # [N + 1] int32: 0, 1, ..., N
    length: torch.Tensor  # [N] int32, positions


class _PlanOptions(TypedDict):
    max_queries: int
    decode_queries: int
    share_prefixes: bool


class AttentionPlans:
    """Where a device cuts a step's rows into work, once for all layers of a window.

    The memory of a window's plan is taken when it is first needed, for steps of up to `tokens` tokens and
    `rows` rows, and keeps its place, because captured kernels read it. Rows of up to `decode_queries` tokens
    are decoded: a row of drafts is one token with company. Steps whose rows may have any number of tokens run
    the kernel that computes what decode rows share; without a window they do.
    """

    def __init__(self, tokens: int, rows: int, decode_queries: int = 1) -> None:
        """`decode_queries`: see ops.AttentionPlan."""
        self._tokens = tokens
        self._rows = rows
        self._decode_queries = decode_queries
        # By window and most queries: for the first layer, and for those behind it.
        self._plans: dict[tuple[int, int], tuple[ops.AttentionPlan, ops.AttentionPlan]] = {}
        self._memory: dict[int, torch.Tensor] = {}  # by window
        self._made: set[int] = set()
        self._most_queries = 0

    def begin(self, most_queries: int) -> None:
        """A new step, whose rows have at most this many tokens (0: any number)."""
        self._made.clear()
        self._most_queries = most_queries

    def of(
        self,
        ctx: AttentionContext,
        q: torch.Tensor,
        cache: torch.Tensor,
        table: torch.Tensor,
        window: int,
        chunked: bool = False,
    ) -> ops.AttentionPlan:
        """The plan of a window, written unless it is. `chunked`: as all windows of a model are, or none."""
        key, heads = (window, self._most_queries), q.shape[1]
        plans = self._plans.get(key)
        if plans is None:
            memory = self._memory.get(window)
            if memory is None:
                size = self._bytes(cache, q, window)
                memory = self._memory[window] = torch.empty(size, dtype=torch.uint8, device=q.device)
            plan = ops.AttentionPlan(memory=memory, **self._options(self._most_queries, window))
            plans = self._plans[key] = (plan, dataclasses.replace(plan, ready=True))
        first, behind = plans
        if window in self._made:
            return behind
        self._made.add(window)
        rows = (ctx.row_slot, ctx.query_start, ctx.seq_len)
        ops.plan_attention(first, cache, table, *rows, q.shape[0], heads, window, chunked, q)
        return first

    def _bytes(self, cache: torch.Tensor, q: torch.Tensor, window: int) -> int:
        """What any step's plan of a window takes."""
        shape = (self._tokens, self._rows, q.shape[1], window)
        return max(
            ops.attention_plan_bytes(cache, *shape, **self._options(most, window), like=q)
            for most in {0, 1, self._decode_queries}
        )

    def _options(self, most_queries: int, window: int) -> _PlanOptions:
        # Where nothing is decoded, as in an engine that is batch-invariant, nothing is shared either.
        shares = most_queries == 0 and window == 0 and self._decode_queries > 0
        return {
            "max_queries": most_queries,
            "decode_queries": self._decode_queries,
            "share_prefixes": shares,
        }


class AttentionContext:
    """The cache and the rows of one step. The runner makes one and points it at each step's columns.

    A layer asks for what its group offers: attend() where it has keys and values, attend_latent() where all
    heads share one vector of each token, state() where it is recurrent. caches: one [B, 2, Hk, bs, D] or
    latent [B, bs, W] view for each layer that attends, states: the (conv, scan) views
    of each recurrent one, made once, because slicing in every call would cost as much as the call;
    block_tables: one [slots, max_blocks] int32 for each group of layers; groups: the group of each layer;
    scales: of caches in fp8, by layer, 1 where there are none. Of a step: query_start [R + 1] int32, row_slot
    and seq_len [R] int32, slots: for each group [N] int64, where each token's keys and values go, rows:
    (source, target) of a group of states, [R] int32 each, encoded: what tokens see of an encoder's output.
    plans: where the device's attention is planned. invariant: whether a token's attention must not depend on
    the other tokens of the step.
    """

    __slots__ = (
        "block_tables",
        "caches",
        "encoded",
        "groups",
        "invariant",
        "plans",
        "query_start",
        "row_slot",
        "rows",
        "scales",
        "seq_len",
        "slots",
        "states",
    )

    def __init__(
        self,
        caches: Sequence[torch.Tensor] | Mapping[int, torch.Tensor],
        block_tables: Sequence[torch.Tensor],
        groups: Sequence[int],
        states: Mapping[int, tuple[torch.Tensor, torch.Tensor]] | None = None,
        scales: Mapping[int, KvScales] | None = None,
    ) -> None:
        self.caches = caches
        self.block_tables = block_tables
        self.groups = groups
        self.states = states or {}
        given = scales or {}
        self.scales = [given.get(layer, KvScales()) for layer in range(len(groups))]
        self.plans: AttentionPlans | None = None
        self.invariant = False
        self.query_start: torch.Tensor
        self.row_slot: torch.Tensor
        self.seq_len: torch.Tensor
        self.slots: Sequence[torch.Tensor]
        self.rows: tuple[torch.Tensor, torch.Tensor]
        self.encoded: EncodedRows

    def state(self, layer: int) -> LayerState:
        """Return the states of a recurrent layer and where the rows of this step find and leave theirs."""
        return LayerState(*self.states[layer], *self.rows)

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float,
        window: int = 0,
        soft_cap: float = 0.0,
        sinks: torch.Tensor | None = None,
        chunked: bool = False,
        rotation: Rotation | None = None,
    ) -> torch.Tensor:
        """Store k and v [N, Hk, D] in the cache of `layer`, then return the attention of q [N, Hq, D].

        `rotation`: of q and k, before that and in the same pass.
        """
        cache, group, (k_scale, v_scale) = self.caches[layer], self.groups[layer], self.scales[layer]
        slots, table = self.slots[group], self.block_tables[group]
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        plan = None if self.plans is None else self.plans.of(self, q, cache, table, window, chunked)
        rows = (table, self.row_slot, self.query_start, self.seq_len)
        how = (window, soft_cap, sinks, plan, chunked, k_scale, v_scale, self.invariant)
        if rotation is None:
            ops.cache_write(k, v, cache, slots, k_scale, v_scale)
            attention = (q, cache, *rows, scale, *how)
            ops.paged_attention(out, *attention)
        else:
            position, cos_sin, q_norm, k_norm, eps, offset = rotation
            norms = (q_norm, k_norm, eps, offset, False)
            fresh = (q, k, v, position, cos_sin, cache, slots, *rows, scale, *norms, *how)
            ops.norm_rope_attention(out, *fresh)
        return out

    def attend_latent(
        self, layer: int, q: torch.Tensor, latent: torch.Tensor, rope: torch.Tensor, *, scale: float
    ) -> torch.Tensor:
        """Store latent [N, C] and rope [N, W - C] in the cache of `layer`, then return the attention of
        q [N, H, W] over such vectors, whose first C entries are the values: [N, H, C].
        """
        cache, group = self.caches[layer], self.groups[layer]
        ops.latent_cache_write(latent, rope, cache, self.slots[group])
        out = torch.empty((*q.shape[:2], latent.shape[1]), dtype=q.dtype, device=q.device)
        table = self.block_tables[group]
        ops.latent_attention(out, q, cache, table, self.row_slot, self.query_start, self.seq_len, scale)
        return out

    def attend_encoded(self, layer: int, q: torch.Tensor, *, scale: float) -> torch.Tensor:
        """Return the attention of q [N, Hq, D] over what `store` wrote for each token's row.

        `layer` is one of spec.cross_layers. A row without an encoder's output gets zeros.
        """
        cache, table = self.caches[layer], self.block_tables[self.groups[layer]]
        out, rows = torch.zeros_like(q, memory_format=torch.contiguous_format), self.encoded
        of_rows, (k_scale, v_scale) = (rows.row_slot, rows.query_start, rows.length), self.scales[layer]
        ops.paged_attention(out, q, cache, table, *of_rows, scale, k_scale=k_scale, v_scale=v_scale)
        return out

    def store(self, layer: int, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
        """Write keys and values [L, Hk, D] of an encoder's output to `slots` [L] int64 of a cross layer."""
        ops.cache_write(k, v, self.caches[layer], slots, *self.scales[layer])


class Attention(Layer):
    """Grouped-query attention with rotary positions: x [N, H] -> [N, H].

    Biases, the norm of each query and key head, and the window are as the spec says for this layer.
    """

    def __init__(self, spec: ModelSpec, layer: int, rotary: torch.Tensor | None) -> None:
        super().__init__()
        dtype = getattr(torch, spec.dtype)
        parts = (("q_proj", spec.q_size), ("k_proj", spec.kv_size), ("v_proj", spec.kv_size))
        self.qkv_proj = FusedLinear(spec.hidden_size, parts, bias=spec.attention_bias, dtype=dtype)
        self.o_proj = Linear(spec.q_size, spec.hidden_size, bias=spec.attention_out_bias, dtype=dtype)
        self.q_norm = _head_norm(spec) if spec.qk_norm else None
        self.k_norm = _head_norm(spec) if spec.qk_norm else None
        self.sinks = _sinks(spec) if spec.attention_sinks else None
        self.layer = layer
        self.rotary = rotary  # shared with all layers that rotate alike
        self.heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        self.head_shape = (-1, sum(self.heads), spec.head_dim)
        self.out_shape = (-1, spec.q_size)
        self.scale = spec.attention_scale
        self.soft_cap = spec.attn_soft_cap
        self.window = spec.layer_windows[layer]
        self.chunked = spec.chunked_windows and self.window > 0

    def forward(self, x: Input, position: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        projected: torch.Tensor = self.o_proj(self.attend(x, position, ctx))
        return projected

    def add_to(self, residual: torch.Tensor, x: Input, position: torch.Tensor, ctx: AttentionContext) -> Left:
        """Add the output to the residual [N, H], or return it: then the next norm adds it."""
        return self.o_proj.add_to(residual, self.attend(x, position, ctx))

    def leads_to(self, norm: RMSNorm) -> None:
        """Say that what comes after `add_to` is this norm of the residual."""
        self.o_proj.leads_to(norm)

    def attend(self, x: Input, position: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        """Return the heads' outputs side by side: [N, heads * head_dim]."""
        q, k, v = self.qkv_proj(x).view(self.head_shape).split_with_sizes(self.heads, 1)
        rotation = self.prepare(q, k, position)
        out = ctx.attend(
            self.layer,
            q,
            k,
            v,
            scale=self.scale,
            window=self.window,
            soft_cap=self.soft_cap,
            sinks=self.sinks,
            chunked=self.chunked,
            rotation=rotation,
        )
        return out.view(self.out_shape)

    def prepare(self, q: torch.Tensor, k: torch.Tensor, position: torch.Tensor) -> Rotation | None:
        """Norm queries and keys and write positions into them, in place; or return how, for one pass."""
        q_norm, k_norm = self.q_norm, self.k_norm
        if q_norm is None or k_norm is None:
            return None if self.rotary is None else Rotation(position, self.rotary)
        if self.rotary is not None:
            weights = (q_norm.weight, k_norm.weight)
            return Rotation(position, self.rotary, *weights, q_norm.eps, q_norm.offset)
        q_norm.in_place(q)
        k_norm.in_place(k)
        return None


def _sinks(spec: ModelSpec) -> nn.Parameter:
    """They are compared with scores, which are float32 in any model."""
    return nn.Parameter(torch.empty(spec.num_heads, dtype=torch.float32), requires_grad=False)


def _head_norm(spec: ModelSpec) -> RMSNorm:
    return RMSNorm(spec.head_dim, spec.rms_eps, dtype=getattr(torch, spec.dtype), offset=spec.norm_offset)
