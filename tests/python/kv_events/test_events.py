"""An independent subscriber's picture of the cache equals the engine's, whatever was dropped on the way."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kv_events import vllm_names

from octavo import core
from octavo.kv_events import KvEventsConfig, names, wire
from octavo.kv_events.merge import merge
from octavo.kv_events.names import CborNames, Names, NativeNames, event_keys
from octavo.kv_events.publisher import KvEventPublisher
from octavo.kv_events.subscriber import CacheIndex, Subscriber

FULL = [wire.GroupInfo("full_attention")]
Item = tuple[bytes, int, int]  # hash, start, length
Content = dict[tuple[int, Any], tuple[tuple[int, ...], Any]]  # tokens and extra keys by group and name


def config(**more: Any) -> KvEventsConfig:
    serial = next(_serials)
    ends = {"endpoint": f"inproc://events-{serial}", "replay_endpoint": f"inproc://replay-{serial}"}
    return KvEventsConfig(enable_kv_cache_events=True, **{**ends, **more})


_serials = iter(range(10**6))


def small_engine(seed: int, groups: list[core.CacheGroup] | None = None) -> core.Engine:
    return core.Engine(
        core.EngineConfig(
            num_blocks=40,
            block_size=4,
            max_model_len=64,
            max_num_seqs=6,
            max_num_batched_tokens=32,
            vocab_size=50,
            hash_seed=seed + 1,
            enable_kv_events=True,
            groups=groups or [],
            encoder_cache_size=16,
        )
    )


class Life:
    """An engine under random operations, its events given to `sink` after each of them."""

    def __init__(self, seed: int, sink: Any, groups: list[core.CacheGroup] | None = None) -> None:
        self.rng = random.Random(seed)
        self.engine = small_engine(seed, groups)
        self.sink = sink
        self.live: list[int] = []
        self.asked: list[tuple[list[int], str, list[Item]]] = []  # prompt, salt, images

    def operate(self) -> None:
        rng, engine = self.rng, self.engine
        choice = rng.random()
        if choice < 0.3 and len(self.live) < 12:
            self.add()
        elif choice < 0.33 and self.live:
            victim = self.live.pop(rng.randrange(len(self.live)))
            engine.abort(victim)
        elif choice < 0.335:
            engine.reset_prefix_cache()
        else:
            plan = engine.begin_step()
            if plan is not None:
                tokens = [rng.randrange(4) for _ in range(plan.num_samples)]
                outputs = engine.finish_step(plan.step_id, np.array(tokens, np.int32))
                ended = set(outputs["request"][outputs["finish"] != 0].tolist())
                self.live = [request for request in self.live if request not in ended]
        self.sink.publish(engine.take_events(), engine.cached_content)

    def add(self) -> None:
        rng = self.rng
        family = rng.randrange(4)
        prompt = [(family * 5 + i) % 50 for i in range(rng.randint(1, 40))] + [rng.randrange(50)]
        params = core.SamplingParams()
        params.max_tokens = rng.randint(1, 8)
        salt = rng.choice(["", "", "tenant"])
        items = self.items(len(prompt))
        native = [core.EncoderItem(digest, start, length, length) for digest, start, length in items]
        kept = self.retention(len(prompt))
        request = self.engine.add_request(np.array(prompt, np.int32), params, 0, salt, kept, native)
        self.live.append(request)
        self.asked.append((prompt, salt, items))

    def retention(self, length: int) -> core.Retention | None:
        return None

    def items(self, length: int) -> list[Item]:
        """Images in one request of four."""
        items: list[Item] = []
        at = self.rng.randrange(40)
        while at < length and len(items) < 3:
            size = self.rng.randint(1, min(6, length - at))
            items.append((bytes([self.rng.randrange(2), size]) * 8, at, size))
            at += size + self.rng.randrange(9)
        return items if self.rng.random() < 0.25 else []

    def content(self) -> Content:
        return {
            (e["group"], e["hash"]): (tuple(e["token_ids"]), event_keys(e["extra"]))
            for e in self.engine.cached_content()
        }


def content_of(index: CacheIndex) -> Content:
    return {
        (g, name): (block.token_ids, block.extra_keys)
        for g, held in index.groups.items()
        for name, block in held.items()
    }


class DirectSink:
    """The wire without a socket: every batch is encoded, decoded and applied."""

    def __init__(self, groups: list[wire.GroupInfo], names: Names | None = None) -> None:
        self.groups = groups
        self.names = names or NativeNames()
        self.index = CacheIndex()

    def publish(self, changes: Any, content: Any, *, lost: bool = False) -> None:
        assert not lost
        if changes:
            batch = wire.Batch(time.time(), merge(changes, self.groups, self.names))
            self.index.apply(wire.decode(wire.encode(batch)))


def groups_of(windows: bool) -> tuple[list[wire.GroupInfo], list[core.CacheGroup] | None]:
    if not windows:
        return FULL, None
    window = core.CacheGroup("sliding_window", block_size=4, window=8)
    return [*FULL, wire.GroupInfo("sliding_window", 8)], [core.CacheGroup("full", block_size=4), window]


@pytest.mark.parametrize("windows", [False, True])
def test_replayed_events_equal_the_engine_s_map(windows: bool) -> None:
    infos, groups = groups_of(windows)
    sink = DirectSink(infos)
    life = Life(int(windows), sink, groups)
    for operation in range(500_000):
        life.operate()
        if operation % 1000 == 0:
            assert content_of(sink.index) == life.content(), f"operation {operation}"
    assert content_of(sink.index) == life.content()
    assert life.engine.stats()["evictions"] > 100_000


class NamedLife(Life):
    """A life whose content goes by vLLM's names, which it finds by itself."""

    def operate(self) -> None:
        sink, self.sink = self.sink, self
        super().operate()
        self.sink = sink

    def publish(self, changes: Any, content: Any) -> None:
        for event in changes:
            if event["kind"] == "stored":
                before = self.names[event["parent"]] if event["start"] else vllm_names.first_parent()
                name = vllm_names.name(before, event["token_ids"], event["extra"])
                self.names[event["hash"]] = name
        self.outer.publish(changes, content)

    def __init__(self, seed: int, sink: Any, groups: list[core.CacheGroup] | None = None) -> None:
        super().__init__(seed, sink, groups)
        self.outer = sink
        self.names: dict[bytes, bytes] = {}

    def retention(self, length: int) -> core.Retention | None:
        """Some ends of prompts outlive their beginnings."""
        if length < 9 or self.rng.random() < 0.7:
            return None
        return core.Retention([(8, length, 90, 0)])

    def content(self) -> Content:
        return {(group, self.names[known]): block for (group, known), block in super().content().items()}

    def reachable(self) -> Content:
        """Content of which all that stands before it is cached too."""
        held: set[tuple[int, bytes]] = set()
        for event in self.engine.cached_content():
            if event["start"] == 0 or (event["group"], event["parent"]) in held:
                held.add((event["group"], event["hash"]))
        names = {(group, self.names[known]) for group, known in held}
        return {key: block for key, block in self.content().items() if key in names}


@pytest.mark.parametrize("windows", [False, True])
def test_replayed_events_with_shared_names_equal_the_engine_s_map(windows: bool) -> None:
    infos, groups = groups_of(windows)
    sink = DirectSink(infos, CborNames(4))
    life = NamedLife(int(windows), sink, groups)
    for operation in range(100_000):
        life.operate()
        if operation % 1000 == 0:
            assert content_of(sink.index) == life.content(), f"operation {operation}"
    assert content_of(sink.index) == life.content()
    assert life.engine.stats()["evictions"] > 20_000


def test_with_shared_names_a_loss_costs_only_what_no_prompt_can_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_REMEMBERED", 8)
    sink = DirectSink(FULL, CborNames(4))
    life = NamedLife(11, sink)
    missing = 0
    for _ in range(300):
        life.outer = sink
        for _ in range(20):
            life.operate()
        life.outer = Lost()
        for _ in range(life.rng.randrange(100)):
            life.operate()
        content = life.engine.cached_content()
        sink.publish([{"kind": "cleared", "group": 0}, *content], None)
        seen, truth = content_of(sink.index), life.content()
        assert life.reachable().items() <= seen.items() <= truth.items()
        missing += len(truth) - len(seen)
    assert missing > 0  # else nothing was lost that mattered


class Lost:
    """Events on their way to nobody."""

    def publish(self, changes: Any, content: Any) -> None:
        pass


@pytest.fixture
def publisher() -> Iterator[KvEventPublisher]:
    with KvEventPublisher(config(), FULL) as made:
        yield made


def follow(publisher: KvEventPublisher) -> Subscriber:
    return Subscriber(publisher.endpoint, publisher.replay_endpoint)


def settle(subscriber: Subscriber, life: Life) -> None:
    """Lets everything that is on its way arrive."""
    deadline = time.monotonic() + 20
    while content_of(subscriber.index) != life.content() or not subscriber.index.exact:
        assert time.monotonic() < deadline, "the subscriber's picture stays wrong"
        life.sink.publish(life.engine.take_events(), life.engine.cached_content)
        subscriber.poll(0.05)
        subscriber.catch_up()


def test_a_subscriber_follows_over_sockets(publisher: KvEventPublisher) -> None:
    life, subscriber = Life(3, publisher), follow(publisher)
    for _ in range(2_000):
        life.operate()
        if life.rng.random() < 0.05:
            subscriber.poll()
    settle(subscriber, life)
    assert subscriber.missed_batches == 0
    subscriber.close()


def test_a_subscriber_that_starts_late_or_again_is_told_what_it_missed(publisher: KvEventPublisher) -> None:
    life = Life(4, publisher)
    for _ in range(3):
        for _ in range(500):
            life.operate()
        subscriber = follow(publisher)
        settle(subscriber, life)
        assert subscriber.missed_batches == 0
        subscriber.close()


def test_what_is_no_longer_kept_is_replaced_by_the_whole_content() -> None:
    with KvEventPublisher(config(buffer_steps=5), FULL) as publisher:
        life = Life(5, publisher)
        for _ in range(1_000):
            life.operate()
        subscriber = follow(publisher)
        settle(subscriber, life)
        assert subscriber.missed_batches > 0
        assert subscriber.index.exact
        subscriber.close()


def test_a_full_queue_drops_never_waits_and_starts_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    send = KvEventPublisher._send

    def slow(self: KvEventPublisher, handed: Any) -> None:
        gate.wait(30)
        send(self, handed)

    monkeypatch.setattr(KvEventPublisher, "_send", slow)
    with KvEventPublisher(config(max_queue_size=4), FULL) as publisher:
        life = Life(6, publisher)
        started = time.monotonic()
        for _ in range(500):
            life.operate()
        assert time.monotonic() - started < 10
        assert publisher.dropped_batches > 100
        gate.set()
        subscriber = follow(publisher)
        settle(subscriber, life)
        subscriber.close()


def test_events_that_the_core_dropped_make_everybody_start_afresh(publisher: KvEventPublisher) -> None:
    life, subscriber = Life(7, publisher), follow(publisher)
    for _ in range(300):
        life.operate()
    settle(subscriber, life)
    kept, life.sink = life.sink, DirectSink(FULL)
    for _ in range(300):
        life.operate()
    life.sink = kept
    publisher.publish([], life.engine.cached_content, lost=True)
    settle(subscriber, life)
    subscriber.close()


def test_an_engine_that_starts_anew_clears_what_was_known_of_the_last(tmp_path: Path) -> None:
    ends = config(endpoint=f"ipc://{tmp_path}/events", replay_endpoint=f"ipc://{tmp_path}/replay")
    subscriber = None
    for seed in (8, 9):
        with KvEventPublisher(ends, FULL) as publisher:
            subscriber = subscriber or follow(publisher)
            life = Life(seed, publisher)
            for _ in range(300 if seed == 8 else 100):
                life.operate()
            settle(subscriber, life)
    assert subscriber is not None
    subscriber.close()


def test_garbage_on_the_replay_socket_is_ignored(publisher: KvEventPublisher) -> None:
    import zmq

    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(publisher.replay_endpoint)
    for frames in ([b""], [b"", b"short"], [b"", b"12345678", b"more"], [b"x" * 100_000]):
        socket.send_multipart(frames)
    subscriber = follow(publisher)
    assert subscriber.catch_up() == 1
    assert subscriber.index.exact
    socket.close(linger=0)
    subscriber.close()


def test_a_port_in_use_is_named() -> None:
    with KvEventPublisher(config(endpoint="tcp://*:0"), FULL) as publisher:
        port = publisher.endpoint.rpartition(":")[2]
        with pytest.raises(OSError, match=f"kv_events_config.endpoint='tcp://\\*:{port}'"):
            KvEventPublisher(config(endpoint=f"tcp://*:{port}"), FULL)


def test_the_example_agrees_with_its_engine() -> None:
    script = Path(__file__).parents[3] / "examples" / "kv_events" / "subscriber.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "turn 19:" in done.stdout
