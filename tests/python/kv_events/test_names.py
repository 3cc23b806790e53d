"""Names of blocks: those of vLLM's sha256_cbor, and what they need to be known."""

from __future__ import annotations

from typing import Any

import pytest

from octavo import env
from octavo.kv_events import names
from octavo.kv_events.merge import merge
from octavo.kv_events.names import CborNames, NativeNames
from octavo.kv_events.wire import AllBlocksCleared, BlockRemoved, BlockStored, GroupInfo

# Computed by vLLM 0.33: hash_block_tokens over generate_block_hash_extra_keys with sha256_cbor, blocks of 4.
PLAIN = (
    [0, 1, 23, 24, 255, 256, 65535, 65536, 2**31 - 1, 7, 8, 9],
    "",
    [],
    [
        "9e85762a91def2a8c95633b296ff858a1304ca43d1c6d5cf5ac75c989d90ee6c",
        "5d203f5d5f17a692f178862e6dec68ea216ff9c871972729fca592dff2c05659",
        "ca9ee3c07170dc121b46b82373fd97a28f678c20781691b7f5b21b78b5a4a4fe",
    ],
)
SALTED = (
    [1, 2, 3, 4, 5, 6, 7, 8],
    "tenant-ä",
    [],
    [
        "790abc8fe788525f73adb8e4de838031dfa1a6ac1bfa3a1c29806232e5b79241",
        "7ba316378a07771d99e0084cb70cfceab05be22326a5eab6ae22056666a647a5",
    ],
)
WITH_ITEMS = (
    [9] * 12,
    "s",
    [(bytes.fromhex("00112233445566778899aabbccddeeff"), 3, 4), (b"\xff" * 16, 9, 2)],
    [
        "aeb2cbf9a8035169262c49de9e9b7fd13c0735dc5be711fdfe47a63e2533a2d7",
        "84fc74c28c63da0157b8bf5294cd90c8196feea7f28f02ec0e59efafdcb30234",
        "48115cce5c19cc59b12da149a2124d05723f7d69cfc1f4e61aa13acf0236f6e3",
    ],
)
AS_INTEGERS = [6541298794327240300, 18205118559263151705, 17704243290404332798]  # of PLAIN
SEEDED_WITH_42 = "0a99040f25d8a5f22275b867f403918da98c9d140eaea10f5319d4d1d84429df"  # of [1, 2, 3, 4]

Items = list[tuple[bytes, int, int]]


def changes(tokens: list[int], salt: str, items: Items, size: int, group: int = 0) -> list[dict[str, Any]]:
    """What the core says when a sequence is stored; its own hashes are stood for by the tokens."""

    def known(end: int) -> bytes:
        return repr((salt, items, tokens[:end])).encode()

    result = []
    for first in range(0, len(tokens) - size + 1, size):
        mine = [(h, start - first, n) for h, start, n in items if start < first + size and start + n > first]
        extra = (salt if first == 0 else "", mine)
        result.append(
            {
                "kind": "stored",
                "group": group,
                "hash": known(first + size),
                "parent": known(first),
                "start": first,
                "token_ids": tokens[first : first + size],
                "extra": extra if any(extra) else None,
            }
        )
    return result


def removed(change: dict[str, Any]) -> dict[str, Any]:
    return {**change, "kind": "removed", "token_ids": []}


@pytest.mark.parametrize("case", [PLAIN, SALTED, WITH_ITEMS])
def test_names_are_those_of_vllm(case: tuple[list[int], str, Items, list[str]]) -> None:
    tokens, salt, items, expected = case
    (event,) = merge(changes(tokens, salt, items, 4), [GroupInfo("full_attention")], CborNames(4))
    assert isinstance(event, BlockStored)
    assert [name.hex() for name in event.block_hashes if isinstance(name, bytes)] == expected
    assert event.parent_block_hash is None


def test_integers_are_the_last_64_bits() -> None:
    tokens, salt, items, _ = PLAIN
    given = CborNames(4, as_integers=True)
    assert [given.stored(change) for change in changes(tokens, salt, items, 4)] == AS_INTEGERS


def test_pythonhashseed_decides_what_stands_before_a_first_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env.HASH_SEED, "42")
    assert CborNames(4).stored(changes([1, 2, 3, 4], "", [], 4)[0]) == bytes.fromhex(SEEDED_WITH_42)


@pytest.mark.parametrize("case", [PLAIN, SALTED, WITH_ITEMS])
def test_a_large_block_has_the_name_of_its_last_unit(case: tuple[list[int], str, Items, list[str]]) -> None:
    tokens, salt, items, expected = case
    (change,) = changes(tokens[:8], salt, [item for item in items if item[1] < 8], 8)
    name = CborNames(4).stored(change)
    assert isinstance(name, bytes) and name.hex() == expected[1]


def test_a_name_follows_from_one_of_another_group_and_from_one_that_left() -> None:
    tokens, salt, items, expected = PLAIN
    given = CborNames(4)
    first, second, third = changes(tokens, salt, items, 4)
    assert given.stored(first) is not None
    in_window = {**second, "group": 1}
    assert given.stored(in_window) == bytes.fromhex(expected[1])
    assert given.parent(in_window) == bytes.fromhex(expected[0])
    assert given.removed(removed(in_window)) == bytes.fromhex(expected[1])
    assert given.stored({**third, "group": 1}) == bytes.fromhex(expected[2])


def test_what_has_no_known_prefix_is_left_out() -> None:
    first, second, third = changes(*PLAIN[:3], 4)
    given = CborNames(4)
    groups = [GroupInfo("full_attention")]
    assert merge([second, third, removed(second)], groups, given) == []
    assert len(merge([first, second], groups, given)) == 1


def test_names_outlive_a_fresh_start() -> None:
    """The content is told again after a loss, maybe without what stood before it."""
    tokens, salt, items, expected = PLAIN
    first, second, third = changes(tokens, salt, items, 4)
    given, groups = CborNames(4), [GroupInfo("full_attention")]
    merge([first, second], groups, given)
    cleared, stored = merge([{"kind": "cleared", "group": 0}, third], groups, given)
    assert isinstance(cleared, AllBlocksCleared) and isinstance(stored, BlockStored)
    assert stored.block_hashes == [bytes.fromhex(expected[2])]
    assert stored.parent_block_hash == bytes.fromhex(expected[1])
    assert merge([removed(second)], groups, given) == []  # it was not told again


def test_the_engine_s_thread_need_not_wait_for_many_names(monkeypatch: pytest.MonkeyPatch) -> None:
    given, computed, waited = CborNames(1), 0, []
    compute = given._digest

    def digest(value: Any) -> bytes:
        nonlocal computed
        computed += 1
        return compute(value)

    monkeypatch.setattr(given, "_digest", digest)
    monkeypatch.setattr(names.time, "sleep", lambda seconds: waited.append((seconds, computed)))
    merge(changes(list(range(100)), "", [], 1), [GroupInfo("full_attention")], given)
    assert {seconds for seconds, _ in waited} == {0}
    counts = [0, *(count for _, count in waited), computed]
    assert max(later - earlier for earlier, later in zip(counts, counts[1:])) <= 8


def test_names_of_what_left_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_REMEMBERED", 2)
    given, groups = CborNames(1), [GroupInfo("full_attention")]
    chain = changes([1, 2, 3, 4, 5], "", [], 1)
    merge(chain[:4], groups, given)
    events = merge([removed(change) for change in reversed(chain[:4])], groups, given)
    assert [len(e.block_hashes) for e in events if isinstance(e, BlockRemoved)] == [4]
    assert given.stored(chain[4]) is None  # that before it left first
    assert given.stored(chain[2]) is not None


def test_native_names_are_the_core_s_hashes() -> None:
    change = {"kind": "stored", "group": 0, "hash": bytes(range(16)), "parent": b"\1" * 16, "start": 4}
    assert NativeNames().stored(change) == bytes(range(16))
    assert NativeNames(as_integers=True).stored(change) == 0x0706050403020100
    assert NativeNames().parent({**change, "start": 0}) is None


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "cbor2", None)
    with pytest.raises(ImportError, match="prefix_caching_hash_algo='sha256_cbor' needs cbor2"):
        CborNames(4)
