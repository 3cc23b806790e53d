"""The KV pool as memory, and what each layer sees of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch

from octavo.errors import invalid
from octavo.layers.attention import AttentionContext
from octavo.plan.footprint import DTYPE_BYTES

if TYPE_CHECKING:
    from octavo.hf_config import StateSpec
    from octavo.plan import Plan
    from octavo.weights.kv_scales import KvScales


class Pool:
    """One allocation for the blocks of all groups; its pages are touched when a block is first written.

    `memory` is [block, layer, 2, head, token, dim] where all blocks hold keys and values, [block, layer,
    token, width] of latents: one block of all layers is one contiguous run, so that moving it is one copy.
    With states it is [block, bytes], and a block of any group lies in a run of `bytes / split` of it. A group
    of fewer layers sees the same memory as more, smaller blocks.
    """

    def __init__(self, plan: Plan, device: torch.device | None = None) -> None:
        spec, cut = plan.spec, plan.footprint.cut
        self.dtype: torch.dtype = getattr(torch, plan.dtype)  # of states
        cached = _cached_dtype(plan)
        token: tuple[int, ...] = (2, spec.num_kv_heads, plan.block_size, spec.head_dim)
        if spec.latent is not None:
            token = (plan.block_size, spec.latent.width)
        raw = torch.empty((plan.num_blocks, cut.parent_bytes), dtype=torch.uint8, device=device)
        # Prefill on a GPU reads the null block where a window has given its blocks back, and weighs what it
        # reads with zero: it must not be NaN.
        raw[0].zero_()
        self.bytes = raw.view(-1)  # all of it, for who moves blocks
        self.memory = raw if spec.state else raw.view(cached).view(plan.num_blocks, -1, *token)
        self.caches: dict[int, torch.Tensor] = {}  # by layer, [B, 2, Hk, bs, D]; latents: [B, bs, W]
        self.states: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by layer, (conv, scan)
        self.groups = [0] * (spec.num_layers + len(spec.cross_layers))  # of each layer
        self.blocks: list[torch.Tensor] = []  # by group, [B, layer, ...] of these; states: [B, bytes]
        for number, (group, used) in enumerate(zip(cut.groups, cut.block_bytes)):
            # A block may be followed by bytes that no group can use.
            blocks = raw.view(plan.num_blocks * group.split, -1)[:, :used]
            for layer in group.layers:
                self.groups[layer] = number
            if group.recurrent:
                assert spec.state is not None
                self.blocks.append(blocks)
                self.states.update(zip(group.layers, self._states(blocks, spec.state)))
            else:
                layers = blocks.view(cached).view(-1, len(group.layers), *token)
                self.blocks.append(layers)
                self.caches.update(zip(group.layers, layers.unbind(1)))

    def context(
        self, block_tables: list[torch.Tensor], scales: Mapping[int, KvScales] | None = None
    ) -> AttentionContext:
        """Give each layer its view of the pool and its scales, each group its table."""
        return AttentionContext(self.caches, block_tables, self.groups, self.states, scales)

    def copy(self, count: int, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Make a step's copies: the leading tokens of blocks whose prefix a request shares up to there."""
        names = ("copy_group", "copy_source", "copy_target", "copy_tokens")
        for group, source, target, tokens in zip(*(columns[name][:count].tolist() for name in names)):
            blocks = self.blocks[group]
            blocks[target, ..., :tokens, :] = blocks[source, ..., :tokens, :]

    def _states(self, blocks: torch.Tensor, spec: StateSpec) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Cut state blocks [B, bytes] into each layer's part: the convolution's inputs, then the scan."""
        size = DTYPE_BYTES[str(self.dtype).removeprefix("torch.")]
        layer_bytes, taps = spec.layer_bytes(size), spec.taps - 1
        conv_bytes, scan_bytes = taps * spec.conv_size * size, spec.inner * spec.size * 4
        parts = []
        for first in range(0, layer_bytes * len(spec.layers), layer_bytes):
            conv = blocks.narrow(1, first, conv_bytes).view(self.dtype)
            scan = blocks.narrow(1, first + spec.conv_bytes(size), scan_bytes).view(torch.float32)
            parts.append(
                (
                    conv.view(-1, taps, spec.conv_size),
                    scan.view(-1, spec.heads, spec.size, spec.head_dim),
                )
            )
        return parts


def _cached_dtype(plan: Plan) -> torch.dtype:
    """What keys and values are kept in. Raises ValueError where this torch cannot hand that to the ops."""
    if plan.kv_dtype != "fp8":
        return getattr(torch, plan.kv_dtype)  # type: ignore[no-any-return]
    try:
        torch.empty(1, dtype=torch.float8_e4m3fn).__dlpack__()
    except (AttributeError, BufferError, RuntimeError) as error:
        remedy = f"use a newer torch than {torch.__version__}, which lends the ops no such tensors, or auto"
        raise invalid("kv_cache_dtype", plan.cache.kv_cache_dtype, remedy) from error
    return torch.float8_e4m3fn
