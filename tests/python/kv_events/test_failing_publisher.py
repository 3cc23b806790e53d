"""Publishers whose sockets or threads fail, subscribers that are slow, and ends at every moment."""

from __future__ import annotations

import errno
import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import zmq
from failing import open_files

from octavo import LLM, SamplingParams
from octavo.kv_events import KvEventsConfig, publisher, wire
from octavo.kv_events.publisher import KvEventPublisher
from octavo.kv_events.subscriber import Subscriber

# Longer than a block, so that there is something to tell.
PROMPTS = tiny_models.random_prompts(2, low=40, high=60)
FULL = [wire.GroupInfo("full_attention")]


def config(folder: Path, **more: Any) -> KvEventsConfig:
    ends = {"endpoint": f"ipc://{folder}/events", "replay_endpoint": f"ipc://{folder}/replay"}
    return KvEventsConfig(enable_kv_cache_events=True, **{**ends, **more})


def stored(number: int) -> list[dict[str, Any]]:
    name = number.to_bytes(16, "little")
    event = {"kind": "stored", "group": 0, "hash": name, "parent": b"", "start": 0, "token_ids": [1, 2]}
    return [{**event, "extra": None}]


def threads() -> int:
    return sum(thread.name == "octavo-kv-events" for thread in threading.enumerate())


def test_whichever_call_on_its_sockets_fails_nothing_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KvEventPublisher(config(tmp_path), FULL).close()  # the context's own files are open now
    sockets: list[Any] = []
    left = [0]

    def counted(call: Any, error: Exception) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise error
            made = call(*arguments, **options)
            if isinstance(made, zmq.Socket):
                sockets.append(made)
            return made

        return wrapped

    broken = zmq.ZMQError(errno.EMFILE)
    monkeypatch.setattr(zmq.Context, "socket", counted(zmq.Context.socket, broken))
    monkeypatch.setattr(zmq.Socket, "bind", counted(zmq.Socket.bind, broken))
    monkeypatch.setattr(threading.Thread, "start", counted(threading.Thread.start, RuntimeError("no thread")))
    for k in range(1, 20):
        left[0] = k
        try:
            KvEventPublisher(config(tmp_path), FULL).close()
        except (OSError, RuntimeError) as error:
            assert k == 5 or "kv_events_config" in str(error)  # the fifth is the thread
            assert all(socket.closed for socket in sockets)
            assert threads() == 0
            left[0] = 0
            KvEventPublisher(config(tmp_path), FULL).close()
        else:
            break
    assert k == 6


def test_a_port_that_is_taken_is_named_with_a_remedy() -> None:
    with zmq.Context.instance().socket(zmq.PUB) as taken:
        port = taken.bind_to_random_port("tcp://127.0.0.1")
        ends = KvEventsConfig(enable_kv_cache_events=True, endpoint=f"tcp://*:{port}")
        said = rf"kv_events_config\.endpoint='tcp://\*:{port}'.*port that is free"
        with pytest.raises(OSError, match=said):
            KvEventPublisher(ends, FULL)
    assert threads() == 0


def test_an_engine_outlives_its_publisher(tiny_folder: Any, tmp_path: Path, monkeypatch: Any) -> None:
    events = {"enable_kv_cache_events": True, "endpoint": f"ipc://{tmp_path}/events"}
    options = {"num_gpu_blocks_override": 64, "max_model_len": 128, "enforce_eager": True}
    llm = LLM(str(tiny_folder("llama")), kv_events_config=events, **options)
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    wanted = llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0].token_ids

    def fail(*_: Any) -> None:
        raise zmq.ZMQError(zmq.ENOTSOCK)

    monkeypatch.setattr(KvEventPublisher, "_send", fail)
    for prompt in (PROMPTS[1], PROMPTS[0], PROMPTS[0]):
        tokens = llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids
        assert len(tokens) == 8
        time.sleep(0.1)
    assert tokens == wanted
    assert threads() == 0
    llm.llm_engine.shutdown()


def test_events_without_memory_cost_no_output(tiny_folder: Any, tmp_path: Path, monkeypatch: Any) -> None:
    events = {"enable_kv_cache_events": True, "endpoint": f"ipc://{tmp_path}/events"}
    options = {"num_gpu_blocks_override": 64, "max_model_len": 128, "enforce_eager": True}
    llm = LLM(str(tiny_folder("llama")), kv_events_config=events, **options)
    seen: list[bool] = []
    publish = KvEventPublisher.publish

    def starved(self: Any, changes: Any, content: Any, *, lost: bool = False) -> None:
        seen.append(lost)
        if len(seen) == 2:
            raise MemoryError
        publish(self, changes, content, lost=lost)

    monkeypatch.setattr(KvEventPublisher, "publish", starved)
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    tokens = llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0].token_ids
    assert len(tokens) == 8
    assert seen[:4] == [False, False, True, False]
    llm.llm_engine.shutdown()


def test_a_slow_subscriber_holds_nobody_up_and_is_exact_in_the_end(tmp_path: Path) -> None:
    cache: dict[bytes, dict[str, Any]] = {}
    with KvEventPublisher(config(tmp_path, hwm=5, buffer_steps=3, max_queue_size=50), FULL) as sender:
        slow = Subscriber(sender.endpoint, sender.replay_endpoint)
        started = time.monotonic()
        for number in range(3000):
            changes = stored(number)
            cache.update((change["hash"], change) for change in changes)
            sender.publish(changes, lambda: list(cache.values()))
            if number % 300 == 0:
                slow.poll(0.001)
        assert time.monotonic() - started < 20
        for number in range(3000, 3400):
            changes = stored(number)
            cache.update((change["hash"], change) for change in changes)
            sender.publish(changes, lambda: list(cache.values()))
            slow.poll(0.02)
            if slow.index.exact and slow.index.groups.get(0, {}).keys() == cache.keys():
                break
        assert slow.index.exact
        assert slow.index.groups[0].keys() == cache.keys()
        slow.close()


def test_a_publisher_may_be_closed_at_any_moment(tmp_path: Path) -> None:
    before = len(open_files())
    for turn in range(30):
        sender = KvEventPublisher(config(tmp_path, max_queue_size=3), FULL)
        subscriber = Subscriber(sender.endpoint, sender.replay_endpoint)
        done = threading.Event()

        def follow(subscriber: Subscriber = subscriber, done: threading.Event = done) -> None:
            while not done.is_set():
                subscriber.poll(0.001)
                subscriber.catch_up(0.01)

        reader = threading.Thread(target=follow, daemon=True)
        reader.start()
        for number in range(turn * 3):
            sender.publish(stored(number), list)
        sender.close(timeout=0.0 if turn % 2 else 1.0)
        sender.close()
        assert threads() == 0
        with pytest.raises(RuntimeError, match="closed"):
            sender.publish(stored(1), list)
        done.set()
        reader.join()
        subscriber.close()
    gc.collect()
    deadline = time.monotonic() + 5  # zmq closes its sockets' files on a thread of its own
    while len(open_files()) > before + 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(open_files()) <= before + 6


def test_a_thread_that_cannot_keep_up_is_left_by_close(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(publisher, "_POLL_SECONDS", 0.01)
    gate = threading.Event()
    send = KvEventPublisher._send

    def slow(self: KvEventPublisher, batch: wire.Batch) -> None:
        gate.wait(0.2)
        send(self, batch)

    monkeypatch.setattr(KvEventPublisher, "_send", slow)
    sender = KvEventPublisher(config(tmp_path), FULL)
    for number in range(50):
        sender.publish(stored(number), list)
    started = time.monotonic()
    sender.close(timeout=0.5)
    assert time.monotonic() - started < 3
    assert threads() == 0
