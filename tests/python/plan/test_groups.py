"""Which layers share block tables, and how their blocks share the pool."""

from __future__ import annotations

import pytest

from octavo.plan.groups import LayerGroup, layer_groups


def test_one_kind_of_layer_is_one_group_whose_blocks_are_the_pools() -> None:
    assert layer_groups((0, 0, 0)) == (LayerGroup(0, (0, 1, 2), 1),)
    assert layer_groups((24, 24)) == (LayerGroup(24, (0, 1), 1),)


def test_groups_of_unequal_size_split_a_block_that_holds_whole_blocks_of_each() -> None:
    windows = (512, 512, 0, 512, 512, 0, 512)
    full, sliding = layer_groups(windows)
    assert (full.layers, full.split) == ((2, 5), 5)
    assert (sliding.layers, sliding.split) == ((0, 1, 3, 4, 6), 2)
    assert full.split * len(full.layers) == sliding.split * len(sliding.layers) == 10


def test_counts_without_a_small_common_multiple_become_one_group_that_keeps_everything() -> None:
    windows = (8,) * 101 + (0,) * 3
    assert layer_groups(windows) == (LayerGroup(0, tuple(range(104)), 1),)


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 1), (16, 1), (17, 2), (10_000, 6)])
def test_a_window_holds_itself_and_the_steps_in_flight_at_any_length(tokens: int, blocks: int) -> None:
    assert LayerGroup(24, (0,), 1).peak(tokens, block_size=16, chunk=25) == blocks


def test_chunks_are_a_kind_of_their_own_and_layers_that_see_everything_stay_full() -> None:
    full, chunked = layer_groups((40, 40, 40, 0), chunked=True)
    assert (full.kind, full.layers, full.split) == ("full", (3,), 3)
    assert (chunked.kind, chunked.layers, chunked.split) == ("chunked_local", (0, 1, 2), 1)
    assert chunked.peak(10_000, block_size=16, chunk=25) == 7
