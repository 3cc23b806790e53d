"""What the core says of its prefix cache, as events of the wire."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.kv_events.names import Change, Names, event_keys
from octavo.kv_events.wire import (
    MEDIUM,
    AllBlocksCleared,
    BlockHash,
    BlockRemoved,
    BlockStored,
    Event,
    GroupInfo,
)


def merge(changes: Sequence[Change], groups: Sequence[GroupInfo], names: Names) -> list[Event]:
    """Wire events for what `octavo.core.Engine.take_events` reports, in order.

    Neighbours become one event: stored blocks of which each continues the one before, and removed blocks of
    one group. A block whose name cannot be known is left out.
    """
    events: list[Event] = []
    last: bytes | None = None  # the content that the latest stored event ends in
    for change in changes:
        kind, group = change["kind"], change["group"]
        before = events[-1] if events else None
        if kind == "cleared":
            names.cleared()
            events.append(AllBlocksCleared())
            last = None
            continue
        name = names.stored(change) if kind == "stored" else names.removed(change)
        if name is None:
            continue
        if kind == "removed":
            if isinstance(before, BlockRemoved) and before.group_idx == group:
                before.block_hashes.append(name)
            else:
                events.append(BlockRemoved([name], MEDIUM, group))
            last = None
            continue
        if isinstance(before, BlockStored) and before.group_idx == group and _continues(change, last):
            _extend(before, change, name)
        else:
            events.append(_stored(change, name, groups[group], names))
        last = change["hash"]
    return events


def _continues(change: Change, last: bytes | None) -> bool:
    return bool(change["start"] > 0 and change["parent"] == last)


def _extend(event: BlockStored, change: Change, name: BlockHash) -> None:
    keys = event_keys(change["extra"])
    if keys is not None and event.extra_keys is None:
        event.extra_keys = [None] * len(event.block_hashes)
    if event.extra_keys is not None:
        event.extra_keys.append(keys)
    event.block_hashes.append(name)
    event.token_ids.extend(change["token_ids"])


def _stored(change: Change, name: BlockHash, group: GroupInfo, names: Names) -> BlockStored:
    tokens = list(change["token_ids"])
    keys = event_keys(change["extra"])
    return BlockStored(
        block_hashes=[name],
        parent_block_hash=names.parent(change),
        token_ids=tokens,
        block_size=len(tokens),
        lora_id=None,
        medium=MEDIUM,
        lora_name=None,
        extra_keys=None if keys is None else [keys],
        group_idx=change["group"],
        kv_cache_spec_kind=group.kind,
        kv_cache_spec_sliding_window=group.window,
    )
