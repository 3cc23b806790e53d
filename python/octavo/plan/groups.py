"""Layers that share block tables, and how the blocks of different groups share one pool.

An attention group's block holds the keys and values of block_size tokens in the group's layers, or a latent
of each for all heads, a state group's block one state of all recurrent layers, a cross group's block those of
block_size positions of an encoder's output. Blocks of different groups differ in bytes; the pool is cut into
parents that each hold a whole number of blocks of any one group, so no group has memory of its own. Needs no
torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_GROUPS = 8  # limits of the core: kMaxCacheGroups, kMaxGroupSplit and kMaxSplitGrid
MAX_SPLIT = 64
MAX_SPLIT_GRID = 4096
STEPS_IN_FLIGHT = 2  # of the engine; blocks and states are kept until the steps that read them have run
GOOD_WASTE = 0.05  # the share of a parent that may hold nothing before a larger one is looked for
ALIGN = 64  # bytes; every block begins on a cache line


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one window (0: full attention), all recurrent layers, or all that see an encoder's output."""

    window: int
    layers: tuple[int, ...]
    split: int  # blocks of this group in one parent
    recurrent: bool = False
    chunked: bool = False  # the window is a chunk that begins anew
    latent: bool = False  # one vector of a token, no keys and values
    encoder_len: int = 0  # positions of an encoder's output, whose keys and values these layers keep

    @property
    def kind(self) -> str:
        """What octavo.core.CacheGroup calls it."""
        if self.recurrent:
            return "state"
        if self.encoder_len:
            return "cross"
        if not self.window:
            return "latent" if self.latent else "full"
        return "chunked_local" if self.chunked else "sliding_window"

    def peak(self, tokens: int, block_size: int, chunk: int) -> int:
        """The most blocks a request holds on its way to `tokens` tokens in steps of up to `chunk`."""
        entries = -(-(self.encoder_len or tokens) // block_size)
        if self.recurrent:
            return min(entries, 1 + STEPS_IN_FLIGHT)  # the state read first, and those written
        if not self.window:
            return entries
        span = self.window + min(STEPS_IN_FLIGHT * chunk, tokens)
        return min(entries, -(-span // block_size) + 1)


@dataclass(frozen=True)
class PoolCut:
    """The groups of a model, and the bytes of the parents that their blocks are cut from."""

    groups: tuple[LayerGroup, ...]
    block_bytes: tuple[int, ...]  # of one block of each group, as far as it is used
    parent_bytes: int

    @property
    def waste(self) -> tuple[float, ...]:
        """The share of a parent that holds nothing, for each group."""
        used = (group.split * size for group, size in zip(self.groups, self.block_bytes))
        return tuple(1 - size / self.parent_bytes for size in used)


def layer_groups(
    windows: Sequence[int], attention_layers: Sequence[int] | None = None, *, chunked: bool = False
) -> tuple[LayerGroup, ...]:
    """Return the attention groups of a model whose layer i attends within windows[i] tokens (0: all of them),
    or within a chunk of so many.

    Full attention comes first. Layers whose counts share no small multiple become one group that keeps
    everything; their windows are then only masked.
    """
    layers = tuple(range(len(windows)) if attention_layers is None else attention_layers)
    kinds = sorted({windows[layer] for layer in layers})
    members = [tuple(layer for layer in layers if windows[layer] == kind) for kind in kinds]
    parent = math.lcm(*(len(found) for found in members))
    splits = [parent // len(found) for found in members]
    if len(kinds) > MAX_GROUPS or max(splits) > MAX_SPLIT or math.lcm(*splits) > MAX_SPLIT_GRID:
        return (LayerGroup(0, layers, 1),)
    return tuple(
        LayerGroup(*group, chunked=chunked and group[0] > 0) for group in zip(kinds, members, splits)
    )


def cut_pool(
    attention: Sequence[LayerGroup], layer_bytes: int, states: Sequence[int], state_bytes: int
) -> PoolCut:
    """Cut the pool for attention groups whose blocks take `layer_bytes` a layer and, where there are
    `states`, for one group of these recurrent layers whose blocks take `state_bytes`.

    Of all cuts that the core can count: the smallest parent that wastes next to nothing in any group, or else
    the one whose worst group wastes least.
    """
    sizes = tuple(len(group.layers) * layer_bytes for group in attention)
    parent = attention[0].split * sizes[0]
    if not states:
        return PoolCut(tuple(attention), sizes, parent)
    found: PoolCut | None = None
    for times in range(1, MAX_SPLIT // max(group.split for group in attention) + 1):
        for split in _state_splits(times * parent, state_bytes):
            groups = [dataclasses.replace(g, split=times * g.split) for g in attention]
            groups.append(LayerGroup(0, tuple(states), split, recurrent=True))
            grid = math.lcm(*(group.split for group in groups))
            if grid > MAX_SPLIT_GRID:
                continue
            size = -(-max(times * parent, split * state_bytes) // (grid * ALIGN)) * grid * ALIGN
            cut = PoolCut(tuple(groups), (*sizes, state_bytes), size)
            if found is None or _rank(cut) < _rank(found):
                found = cut
    assert found is not None  # one block of each is always a cut
    return found


def _state_splits(parent: int, state_bytes: int) -> tuple[int, ...]:
    """How many states a parent of about this size may hold: with a remainder, or with one state too many."""
    fits = min(parent // state_bytes, MAX_SPLIT)
    return tuple(split for split in (fits, fits + 1) if 1 <= split <= MAX_SPLIT)


def _rank(cut: PoolCut) -> tuple[float, int]:
    worst = max(cut.waste)
    return (GOOD_WASTE if worst <= GOOD_WASTE else worst, cut.parent_bytes)
