"""octavo.core's block pool and KV manager, without an engine."""

from __future__ import annotations

import pytest

from octavo import core


def manager(num_blocks: int = 11) -> core.KVManager:
    return core.KVManager(num_blocks=num_blocks, block_size=4, num_slots=3, max_tokens_per_slot=40)


def chain(*tokens: int, salt: str = "") -> core.PrefixChain:
    return core.PrefixChain(list(tokens), 4, salt)


def test_a_pool_gives_and_takes_blocks() -> None:
    pool = core.BlockPool(3)
    assert [pool.take(), pool.take()] == [1, 2]
    with pytest.raises(MemoryError, match="no free block"):
        pool.take()
    pool.ref(1)
    pool.unref(1)
    assert pool.free_count == 0
    pool.unref(1)
    assert pool.free_count == 1
    with pytest.raises(ValueError, match="block=1"):
        pool.unref(1)
    for block in (0, 3, -1):
        with pytest.raises(ValueError, match=f"block={block}"):
            pool.ref(block)


def test_published_blocks_are_matched_and_shared() -> None:
    kv = manager()
    tokens = chain(*range(10))
    assert kv.admit(0, tokens, 10)
    kv.publish(0, tokens, 10)
    assert kv.match(tokens, 10) == 8
    assert kv.match(tokens, 7) == 4
    assert kv.match(chain(*range(10), salt="other"), 10) == 0
    assert kv.admit(1, chain(*range(9)), 9)
    assert kv.blocks(1)[:2] == kv.blocks(0)[:2]
    assert kv.cached_blocks == 2
    kv.check_invariants()


def test_what_does_not_fit_changes_nothing() -> None:
    kv = manager(num_blocks=4)
    assert not kv.admit(0, chain(*range(16)), 16)
    assert kv.free_blocks == 3
    assert kv.admit(0, chain(*range(8)), 8)
    assert not kv.grow(0, 16)
    assert len(kv.blocks(0)) == 2
    assert kv.grow(0, 12)
    kv.check_invariants()


def test_a_released_slot_can_be_used_again() -> None:
    kv = manager()
    tokens = chain(*range(8))
    for _ in range(3):
        assert kv.admit(0, tokens, 8)
        kv.publish(0, tokens, 8)
        kv.release(0)
        kv.check_invariants()
    assert kv.free_blocks == 10
    assert kv.reset()
    assert kv.cached_blocks == 0


def test_a_slot_in_use_is_not_admitted_into() -> None:
    kv = manager()
    assert kv.admit(0, chain(1), 1)
    with pytest.raises(ValueError, match="slot=0 is in use"):
        kv.admit(0, chain(1), 1)


def test_numbers_out_of_range_are_refused() -> None:
    kv = manager()
    tokens = chain(*range(8))
    with pytest.raises(ValueError, match="slot=3"):
        kv.admit(3, tokens, 8)
    with pytest.raises(ValueError, match="tokens=41"):
        kv.grow(0, 41)
    with pytest.raises(ValueError, match="tokens=-1"):
        kv.admit(0, tokens, -1)
    with pytest.raises(ValueError, match="max_tokens=-20"):
        kv.match(tokens, -20)
    with pytest.raises(ValueError, match="tokens=8"):
        kv.publish(0, tokens, 8)  # the slot holds nothing
    with pytest.raises(ValueError, match="block_size=0"):
        core.PrefixChain([1], 0)


def test_a_chain_of_another_block_size_is_refused() -> None:
    kv = manager()
    other = core.PrefixChain(list(range(16)), 8)
    for call in (
        lambda: kv.match(other, 16),
        lambda: kv.admit(0, other, 16),
        lambda: kv.publish(0, other, 0),
    ):
        with pytest.raises(ValueError, match="block_size=8"):
            call()
