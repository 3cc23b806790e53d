"""Layers that share block tables, and how the blocks of different groups share one pool.

A group's block holds the keys and values of block_size tokens in the group's layers. Groups with different
numbers of layers have blocks of different bytes; the pool is cut into parents that each hold a whole number
of blocks of any one group, so no group has memory of its own. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_GROUPS = 8  # limits of the core: kMaxCacheGroups, kMaxGroupSplit and kMaxSplitGrid
MAX_SPLIT = 64
MAX_SPLIT_GRID = 4096
STEPS_IN_FLIGHT = 2  # a window keeps its blocks until the steps that read them have run


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one window; 0 is full attention."""

    window: int
    layers: tuple[int, ...]
    split: int  # blocks of this group in one parent

    @property
    def kind(self) -> str:
        """What octavo.core.CacheGroup calls it."""
        return "sliding_window" if self.window else "full"

    def peak(self, tokens: int, block_size: int, chunk: int) -> int:
        """The most blocks a request holds on its way to `tokens` tokens in steps of up to `chunk`."""
        entries = -(-tokens // block_size)
        if not self.window:
            return entries
        span = self.window + min(STEPS_IN_FLIGHT * chunk, tokens)
        return min(entries, -(-span // block_size) + 1)


def layer_groups(windows: Sequence[int]) -> tuple[LayerGroup, ...]:
    """Return the groups of a model whose layer i attends within windows[i] tokens (0: all of them).

    Full attention comes first. Layers whose counts share no small multiple become one group that keeps
    everything; their windows are then only masked.
    """
    kinds = sorted(set(windows))
    members = [tuple(layer for layer, window in enumerate(windows) if window == kind) for kind in kinds]
    parent = math.lcm(*(len(layers) for layers in members))
    splits = [parent // len(layers) for layers in members]
    if len(kinds) > MAX_GROUPS or max(splits) > MAX_SPLIT or math.lcm(*splits) > MAX_SPLIT_GRID:
        return (LayerGroup(0, tuple(range(len(windows))), 1),)
    return tuple(LayerGroup(*group) for group in zip(kinds, members, splits))
