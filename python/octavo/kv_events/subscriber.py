"""The other end: a subscriber that knows what an engine's prefix cache holds, exactly.

`CacheIndex` applies events; `Subscriber` receives them, notices gaps by their sequence numbers and asks for
what it missed. Both understand vLLM's events as well as Octavo's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import zmq

from octavo.kv_events import wire

_END_OF_REPLAY = int.from_bytes(wire.END_OF_REPLAY, "big")


class CachedBlock(NamedTuple):
    """What a stored event says of one block."""

    parent: wire.BlockHash | None  # None: the first of its sequence
    token_ids: tuple[int, ...]
    extra_keys: tuple[Any, ...] | None = None  # what tells it from others of these tokens, as in BlockStored


def read_frames(frames: Sequence[bytes]) -> tuple[int, bytes]:
    """The sequence number and the payload of a message's frames. Raises ValueError when they are none."""
    if len(frames) < 2 or len(frames[-2]) != 8:
        sizes = [len(frame) for frame in frames[:4]]
        raise ValueError(
            f"a message of {len(frames)} frames of {sizes} bytes is no batch of KV events: it ends in a "
            "number of 8 bytes and a payload"
        )
    return int.from_bytes(frames[-2], "big"), frames[-1]


class CacheIndex:
    """Content by hash, one map for each cache group. `exact` turns false when events were missed."""

    def __init__(self) -> None:
        self.groups: dict[int, dict[wire.BlockHash, CachedBlock]] = {}
        self.exact = False

    def apply(self, batch: wire.Batch) -> None:
        """Applies a batch. Raises ValueError for an event that contradicts itself; `exact` is then false."""
        try:
            self._apply(batch)
        except ValueError:
            self.exact = False
            raise

    def _apply(self, batch: wire.Batch) -> None:
        for event in batch.events:
            if isinstance(event, wire.AllBlocksCleared):
                self.groups.clear()
                self.exact = True
            elif isinstance(event, wire.BlockRemoved):
                held = self.groups.get(event.group_idx or 0, {})
                for name in event.block_hashes:
                    held.pop(name, None)
            else:
                self._store(event)

    def _store(self, event: wire.BlockStored) -> None:
        size = event.block_size
        if size < 1 or len(event.token_ids) != size * len(event.block_hashes):
            raise ValueError(
                f"a stored event names {len(event.block_hashes)} blocks of {size} tokens, but brings "
                f"{len(event.token_ids)} tokens"
            )
        if event.extra_keys is not None and len(event.extra_keys) != len(event.block_hashes):
            raise ValueError(
                f"a stored event names {len(event.block_hashes)} blocks, but brings extra keys of "
                f"{len(event.extra_keys)}"
            )
        held = self.groups.setdefault(event.group_idx or 0, {})
        parent = event.parent_block_hash
        for i, name in enumerate(event.block_hashes):
            keys = None if event.extra_keys is None else _hashable(event.extra_keys[i])
            held[name] = CachedBlock(parent, tuple(event.token_ids[i * size : (i + 1) * size]), keys)
            parent = name


def _hashable(keys: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    return keys and tuple(tuple(key) if isinstance(key, list) else key for key in keys)


class Subscriber:
    """Follows one publisher. `endpoint` and `replay_endpoint` as a client reaches them, e.g. tcp://host:5557.

    A later batch with a lower number comes from an engine that was started anew: the index starts anew then.
    An engine that was restarted and is already further on than the one before looks like a gap instead.
    """

    def __init__(self, endpoint: str, replay_endpoint: str | None = None, topic: str = "") -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self.index = CacheIndex()
        self.missed_batches = 0  # that no replay brought back
        self._next = 0
        self._time = 0.0  # of the latest batch
        self._sub = context.socket(zmq.SUB)
        self._sub.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._sub.connect(endpoint)
        self._replay: zmq.Socket[bytes] | None = None
        if replay_endpoint is not None:
            self._replay = context.socket(zmq.DEALER)
            self._replay.connect(replay_endpoint)

    @property
    def next_sequence(self) -> int:
        """The sequence number of the batch that comes next."""
        return self._next

    def poll(self, timeout: float = 0.0) -> int:
        """Applies every batch that arrives until none does for `timeout` seconds; how many these were."""
        count = 0
        while self._sub.poll(int(timeout * 1000)):
            count += self._receive(*read_frames(self._sub.recv_multipart()))
        return count

    def catch_up(self, timeout: float = 1.0) -> int:
        """Asks for every batch from the next one on; how many were applied, 0 where nobody answers."""
        if self._replay is None:
            return 0
        count = 0
        try:
            self._replay.send_multipart((b"", self._next.to_bytes(8, "big")), zmq.NOBLOCK)
        except zmq.Again:  # nobody is connected there now
            return 0
        deadline = time.monotonic() + timeout
        while self._replay.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            number, payload = read_frames(self._replay.recv_multipart())
            if number == _END_OF_REPLAY:
                break
            count += self._apply(number, payload)
        return count

    def close(self) -> None:
        """Closes the sockets."""
        for socket in (self._sub, self._replay):
            if socket is not None:
                socket.close(linger=0)

    def _receive(self, number: int, payload: bytes) -> int:
        self._notice_restart(number, wire.decode(payload))
        count = self.catch_up() if number > self._next else 0
        return count + self._apply(number, payload)

    def _notice_restart(self, number: int, batch: wire.Batch) -> None:
        if number < self._next and batch.ts > self._time:
            self._next, self.index = 0, CacheIndex()

    def _apply(self, number: int, payload: bytes) -> int:
        batch = wire.decode(payload)
        self._notice_restart(number, batch)
        if number < self._next:
            return 0
        if number > self._next:
            self.missed_batches += number - self._next
            self.index.exact = False
        self.index.apply(batch)
        self._next, self._time = number + 1, batch.ts
        return 1
