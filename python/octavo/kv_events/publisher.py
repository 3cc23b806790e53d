"""KvEventPublisher: sends KV events to whoever subscribes, and repeats what they missed.

The engine's thread hands over what a step changed and never waits: a thread of the publisher names, encodes,
sends and answers replays. Where it cannot keep up, a batch is dropped and counted, and the next one starts
afresh: it clears the cache and stores all of its content, so that every subscriber is exact again. The same
happens when somebody asks for batches that are no longer kept. An engine that rests is asked to publish
(`attach`). The first batch of all is a clear: what a subscriber knew of an engine that ran here before no
longer holds.

An engine outlives its publisher: where the thread fails (a socket, no memory), it says so in the log, and
what is published after it is dropped and counted.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from octavo.kv_events.settings import KvEventsConfig

try:
    import zmq

    from octavo.kv_events import wire
    from octavo.kv_events.merge import merge
    from octavo.kv_events.names import CborNames, Change, Names, NativeNames
except ImportError as error:
    raise ImportError(
        f"KV events need pyzmq and msgspec ({error}): pip install 'octavo[events]', or drop kv_events_config"
    ) from error

logger = logging.getLogger("octavo")

Changes = Sequence[Change]
_POLL_SECONDS = 0.05  # how long a replay, or an engine that rests, waits while nothing is published
_LEAVE_SECONDS = 1.0  # for the batch that is being sent, once the thread is to leave
_CLEARED: Change = {"kind": "cleared", "group": 0}


class _Handed(NamedTuple):
    """What one call of `publish` gave."""

    time: float
    changes: Changes


class KvEventPublisher:
    """One PUB socket, and a ROUTER socket where replay is configured. `close` it; it is a context manager.

    `groups`: the engine's cache groups in order. `names`: what blocks are called, by default the core's
    hashes. `rank`: data-parallel rank, added to every port and batch. Raises OSError where a socket cannot be
    bound.
    """

    def __init__(
        self,
        config: KvEventsConfig,
        groups: Sequence[wire.GroupInfo],
        *,
        names: Names | None = None,
        rank: int = 0,
    ) -> None:
        self._config = config
        self._groups = tuple(groups)
        self._rank = rank
        self._topic = config.topic.encode()
        self._names = names or NativeNames(as_integers=config.int_block_hashes)
        self._queue: queue.Queue[_Handed] = queue.Queue(config.max_queue_size)
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=config.buffer_steps)
        self._sent = 0
        self._stale = threading.Event()  # somebody's picture of the cache cannot be mended from here
        self._engine = threading.RLock()  # held while the engine, or this thread on its behalf, works
        self._flush: Callable[[], None] | None = None
        self.dropped_batches = 0
        self._closing = threading.Event()
        self._late = threading.Event()
        self._replay: zmq.Socket[bytes] | None = None
        self._pub = _socket(zmq.PUB)
        try:
            self._pub.set_hwm(config.hwm)
            self.endpoint = _open(self._pub, "endpoint", config.endpoint, rank)
            self.replay_endpoint = None
            if config.replay_endpoint is not None:
                self._replay = _socket(zmq.ROUTER)
                # One request may be answered with every batch that is kept.
                self._replay.set_hwm(2 * (config.buffer_steps + 1))
                self.replay_endpoint = _open(self._replay, "replay_endpoint", config.replay_endpoint, rank)
            self._thread = threading.Thread(target=self._run, name="octavo-kv-events", daemon=True)
            self._thread.start()
        except BaseException:
            self._close_sockets()
            raise
        atexit.register(self.close)
        self.publish([_CLEARED], list)

    def attach(self, flush: Callable[[], None]) -> AbstractContextManager[object]:
        """Has the publisher's thread call `flush`, which is to `publish` all changes, while nobody else does.

        It does so under the lock that is returned; whoever changes the engine holds it.
        """
        self._flush = flush
        return self._engine

    def publish(self, changes: Changes, content: Callable[[], Changes], *, lost: bool = False) -> None:
        """Hands over what changed since the last call; never waits.

        `content` gives the whole cache as stored events; called only when subscribers must start afresh.
        `lost`: changes before these are missing. Raises RuntimeError after close().
        """
        if self._closing.is_set():
            raise RuntimeError("this publisher is closed")
        if not self._thread.is_alive():  # it has said why
            self.dropped_batches += bool(changes)
            return
        afresh = lost or self._stale.is_set()
        if not changes and not afresh:
            return
        if afresh:
            self._stale.clear()
            try:
                changes = [_CLEARED, *content()]
            except BaseException:
                self._stale.set()  # what could not be handed over is missing
                raise
        try:
            self._queue.put_nowait(_Handed(time.time(), changes))
        except queue.Full:
            if self.dropped_batches == 0:
                logger.warning(
                    "KV events were dropped: the sender does not keep up; subscribers start afresh"
                )
            self.dropped_batches += 1
            self._stale.set()

    def close(self, timeout: float = 1.0) -> None:
        """Sends what waits, for about `timeout` seconds, and closes the sockets. It can be called twice."""
        atexit.unregister(self.close)
        self._closing.set()
        self._thread.join(timeout)
        self._late.set()  # what is left is not sent any more
        self._thread.join(_LEAVE_SECONDS)

    def __enter__(self) -> KvEventPublisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while not self._late.is_set():
                try:
                    self._send(self._queue.get(timeout=_POLL_SECONDS))
                except queue.Empty:
                    if self._closing.is_set():
                        return
                    self._flush_resting_engine()
                self._answer_replays()
        except Exception:
            logger.exception("KV events are no longer sent")
        finally:
            self._close_sockets()

    def _flush_resting_engine(self) -> None:
        if self._flush is None or not self._engine.acquire(blocking=False):
            return  # it is in a step, after which it publishes itself
        try:
            self._flush()
        except RuntimeError:
            if not self._closing.is_set():  # by now there is nobody to tell
                raise
        finally:
            self._engine.release()

    def _send(self, handed: _Handed) -> None:
        events = merge(handed.changes, self._groups, self._names)
        if not events:
            return
        payload = wire.encode(wire.Batch(handed.time, events, self._rank))
        self._kept.append((self._sent, payload))
        self._pub.send_multipart((self._topic, self._sent.to_bytes(8, "big"), payload))
        self._sent += 1

    def _answer_replays(self) -> None:
        while self._replay is not None and self._replay.poll(0):
            frames = self._replay.recv_multipart()
            if len(frames) != 3 or len(frames[2]) != 8:
                logger.warning(
                    "a replay request of %d frames was ignored: send one sequence number", len(frames)
                )
                continue
            client, start = frames[0], int.from_bytes(frames[2], "big")
            if start > self._sent:
                start = 0  # it knows an engine that ran here before
            if self._kept and start < self._kept[0][0]:
                self._stale.set()
            for number, payload in self._kept:
                if number >= start:
                    reply = (client, b"", self._topic, number.to_bytes(8, "big"), payload)
                    self._replay.send_multipart(reply)
            self._replay.send_multipart((client, b"", b"", wire.END_OF_REPLAY, b""))

    def _close_sockets(self) -> None:
        for socket in (self._pub, self._replay):
            if socket is not None:
                socket.close(linger=0)


def _socket(kind: int) -> zmq.Socket[bytes]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    try:
        return context.socket(kind)
    except zmq.ZMQError as error:
        remedy = "raise the limit of open files (ulimit -n), or leave kv_events_config out"
        raise OSError(f"kv_events_config: no socket can be made ({error}): {remedy}") from error


def _open(socket: zmq.Socket[bytes], field: str, endpoint: str, rank: int) -> str:
    """Binds or connects; the endpoint as it came out (a tcp port of 0 is the system's choice)."""
    if rank and endpoint.startswith("tcp://") and not endpoint.endswith(":0"):
        host, _, port = endpoint.rpartition(":")
        endpoint = f"{host}:{int(port) + rank}"
    elif rank:
        endpoint = f"{endpoint}_dp{rank}"
    own = (
        field == "replay_endpoint" or not endpoint.startswith("tcp://") or "*" in endpoint or "::" in endpoint
    )
    try:
        (socket.bind if own else socket.connect)(endpoint)
    except zmq.ZMQError as error:
        remedy = "choose an address of this machine and a port that is free"
        raise OSError(
            f"kv_events_config.{field}={endpoint!r} cannot be opened ({error}): {remedy}"
        ) from error
    return socket.getsockopt_string(zmq.LAST_ENDPOINT) if own else endpoint


def make_names(algorithm: str, unit: int, *, as_integers: bool) -> Names:
    """How blocks are called by `prefix_caching_hash_algo`; `unit`: tokens of a hash unit."""
    if algorithm == "sha256_cbor":
        return CborNames(unit, as_integers=as_integers)
    return NativeNames(as_integers=as_integers)
