"""KV event batches as bytes: MessagePack in the layout of vLLM 0.33.

A batch is an array [time, events, data-parallel rank]; an event is a map tagged "type".
Maps may hold fields that this version does not know. Events as arrays, which vLLM wrote before 0.24, are read
too.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Union

import msgspec

BlockHash = Union[bytes, int]  # noqa: UP007 - read at run time, also by Python 3.10's msgspec
MEDIUM = "GPU"  # vLLM's word for the memory that attention reads, whatever device it is on
END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)


class BlockStored(msgspec.Struct, tag=True, omit_defaults=True, gc=False):
    """Blocks that follow each other in one sequence are in the cache now."""

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: list[int]  # block_size of them for each hash
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None  # one for each hash; None: no block has any
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None


class BlockRemoved(msgspec.Struct, tag=True, omit_defaults=True, gc=False):
    """The last copy of each block has left the cache."""

    block_hashes: list[BlockHash]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag=True, omit_defaults=True, gc=False):
    """The cache is empty."""


Event = Union[BlockStored, BlockRemoved, AllBlocksCleared]  # noqa: UP007


class Batch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """What one step changed, in order."""

    ts: float  # seconds since 1970
    events: list[Event]
    data_parallel_rank: int | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)


def encode(batch: Batch) -> bytes:
    """The payload of one message."""
    return _encoder.encode(batch)


def decode(payload: bytes) -> Batch:
    """The batch in a message's payload. Raises ValueError when it is none."""
    try:
        batch = _decoder.decode(payload)
    except msgspec.ValidationError:
        batch = _decode_arrays(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"this is no batch of KV events: {error}") from error
    if not math.isfinite(batch.ts):
        raise ValueError(f"this is no batch of KV events: its time is {batch.ts}")
    return batch


def _decode_arrays(payload: bytes) -> Batch:
    try:
        parts = msgspec.msgpack.decode(payload)
        events = [_as_map(event) for event in parts[1]]
        return msgspec.convert([parts[0], events, *parts[2:3]], Batch)
    except (msgspec.MsgspecError, TypeError, ValueError, IndexError, KeyError, RecursionError) as error:
        raise ValueError(f"this is no batch of KV events: {error}") from error


def _as_map(event: Any) -> Any:
    """An event written as [tag, field, field, ...] as the map that it stands for."""
    if not isinstance(event, list):
        return event
    tag, *values = event
    known = {kind.__name__: kind for kind in (BlockStored, BlockRemoved, AllBlocksCleared)}
    names = [field.name for field in msgspec.structs.fields(known[tag])]
    missing = dict.fromkeys(("lora_id", "medium", "lora_name")) if tag == "BlockStored" else {"medium": None}
    return {"type": tag, **(missing if tag != "AllBlocksCleared" else {}), **dict(zip(names, values))}


class GroupInfo(NamedTuple):
    """What stored events say of the cache group they belong to."""

    kind: str  # one of KINDS' values
    window: int | None = None  # tokens


# vLLM's names for the kinds of cache groups.
KINDS = {
    "full": "full_attention",
    "latent": "mla_attention",
    "sliding_window": "sliding_window",
    "chunked_local": "chunked_local_attention",
    "state": "mamba",
    "cross": "cross_attention",
}
