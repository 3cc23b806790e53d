"""KV event batches as bytes: the layout that vLLM's subscribers read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from octavo.kv_events import wire
from octavo.kv_events.merge import merge
from octavo.kv_events.names import NativeNames

GROUPS = [wire.GroupInfo("full_attention"), wire.GroupInfo("sliding_window", 8)]


def change(
    kind: str, name: int = 0, parent: int = 0, start: int = 0, group: int = 0, extra: Any = None
) -> dict[str, Any]:
    def digest(n: int) -> bytes:
        return n.to_bytes(16, "little")

    tokens = [name * 10, name * 10 + 1] if kind == "stored" else []
    return {
        "kind": kind,
        "group": group,
        "block": name,
        "hash": digest(name),
        "parent": digest(parent),
        "start": start,
        "token_ids": tokens,
        "extra": extra,
    }


def payload(*changes: dict[str, Any], as_integers: bool = True) -> Any:
    batch = wire.Batch(1.5, merge(changes, GROUPS, NativeNames(as_integers=as_integers)), 3)
    return msgspec.msgpack.decode(wire.encode(batch))


def test_a_batch_is_an_array_of_tagged_maps() -> None:
    assert payload(change("stored", 7), change("removed", 7), change("cleared")) == [
        1.5,
        [
            {
                "type": "BlockStored",
                "block_hashes": [7],
                "parent_block_hash": None,
                "token_ids": [70, 71],
                "block_size": 2,
                "lora_id": None,
                "medium": "GPU",
                "lora_name": None,
                "group_idx": 0,
                "kv_cache_spec_kind": "full_attention",
            },
            {"type": "BlockRemoved", "block_hashes": [7], "medium": "GPU", "group_idx": 0},
            {"type": "AllBlocksCleared"},
        ],
        3,
    ]


def test_hashes_are_bytes_unless_integers_are_asked_for() -> None:
    (event,) = payload(change("stored", 7), as_integers=False)[1]
    assert event["block_hashes"] == [(7).to_bytes(16, "little")]


def test_blocks_that_follow_each_other_are_one_event() -> None:
    events = payload(change("stored", 1), change("stored", 2, parent=1, start=2), change("stored", 5))[1]
    assert [event["block_hashes"] for event in events] == [[1, 2], [5]]
    assert events[0]["token_ids"] == [10, 11, 20, 21]


def test_a_window_names_its_group_and_length() -> None:
    events = payload(change("stored", 1), change("stored", 2, parent=1, start=2, group=1))[1]
    assert [event["group_idx"] for event in events] == [0, 1]
    assert events[1]["kv_cache_spec_sliding_window"] == 8
    assert events[1]["parent_block_hash"] == 1


def test_removed_blocks_of_one_group_are_one_event() -> None:
    events = payload(change("removed", 1), change("removed", 2), change("removed", 3, group=1))[1]
    assert [event["block_hashes"] for event in events] == [[1, 2], [3]]


def test_extra_keys_are_one_entry_a_block_items_before_the_salt() -> None:
    salted = change("stored", 1, extra=("tenant", [(b"\x0a" * 16, 1, 2)]))
    second = change("stored", 2, parent=1, start=2, extra=("", [(b"\x0a" * 16, -1, 2), (b"\x0b" * 16, 1, 1)]))
    third = change("stored", 3, parent=2, start=4)
    (event,) = payload(salted, second, third)[1]
    assert event["extra_keys"] == [[["0a" * 16, 1], "tenant"], [["0a" * 16, -1], ["0b" * 16, 1]], None]


def test_extra_keys_that_come_late_leave_the_blocks_before_without() -> None:
    (event,) = payload(
        change("stored", 1), change("stored", 2, parent=1, start=2, extra=("", [(bytes(16), 0, 2)]))
    )[1]
    assert event["extra_keys"] == [None, [["00" * 16, 0]]]


def test_what_was_encoded_is_decoded() -> None:
    batch = wire.Batch(2.0, merge([change("stored", 1), change("cleared")], GROUPS, NativeNames()), 1)
    assert wire.decode(wire.encode(batch)) == batch


def test_unknown_fields_are_passed_over() -> None:
    event = {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU", "locality": "LOCAL"}
    assert wire.decode(msgspec.msgpack.encode([1.0, [event]])).events == [wire.BlockRemoved([1], "GPU")]


def test_events_written_as_arrays_are_read_too() -> None:
    stored = ["BlockStored", [1, 2], None, [5, 6, 7, 8], 2, None, "GPU"]
    batch = wire.decode(
        msgspec.msgpack.encode([1.0, [stored, ["BlockRemoved", [1]], ["AllBlocksCleared"]], 4])
    )
    assert batch.data_parallel_rank == 4
    assert batch.events == [
        wire.BlockStored([1, 2], None, [5, 6, 7, 8], 2, None, "GPU", None),
        wire.BlockRemoved([1], None),
        wire.AllBlocksCleared(),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"no batch",
        msgspec.msgpack.encode([]),
        msgspec.msgpack.encode([1.0]),
        msgspec.msgpack.encode([1.0, [["Nonsense", 1]]]),
        msgspec.msgpack.encode([1.0, [{"type": "BlockStored"}]]),
        msgspec.msgpack.encode([1.0, [[]]]),
        msgspec.msgpack.encode([1.0, [{"type": "BlockRemoved", "block_hashes": 5, "medium": None}]]),
        msgspec.msgpack.encode({"ts": 1.0}),
    ],
)
def test_what_is_no_batch_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no batch of KV events"):
        wire.decode(data)
