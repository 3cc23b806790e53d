"""What an LLM publishes, also while it rests, and what a router makes of it."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kv_events.vllm_names import chain

from octavo import LLM, SamplingParams
from octavo.kv_events import names
from octavo.kv_events.names import event_keys
from octavo.kv_events.subscriber import Subscriber

Content = dict[bytes, tuple[tuple[int, ...], Any]]  # tokens and extra keys by name
GREEDY = SamplingParams(max_tokens=20, temperature=0)
_serials = iter(range(10**6))


class Followed:
    """An LLM and a subscriber to its events."""

    def __init__(self, folder: Path, events: dict[str, Any], **options: Any) -> None:
        serial = next(_serials)
        self.ends = (f"inproc://llm-events-{serial}", f"inproc://llm-replay-{serial}")
        self.llm = LLM(
            folder,
            kv_events_config={
                "enable_kv_cache_events": True,
                "endpoint": self.ends[0],
                "replay_endpoint": self.ends[1],
                **events,
            },
            num_gpu_blocks_override=64,
            max_model_len=256,
            **options,
        )
        self.subscriber = Subscriber(*self.ends)

    def generate(self, prompts: list[list[int]], salt: str | None = None) -> list[int]:
        """The tokens that each prompt found in the cache."""
        given = [{"prompt_token_ids": prompt, **({"cache_salt": salt} if salt else {})} for prompt in prompts]
        return [o.num_cached_tokens or 0 for o in self.llm.generate(given, GREEDY, use_tqdm=False)]

    def content(self) -> Content:
        events = self.llm.llm_engine.core.cached_content()
        return {e["hash"]: (tuple(e["token_ids"]), event_keys(e["extra"])) for e in events}

    def seen(self) -> Content:
        """What the subscriber knows, once it knows what is true; the engine is not touched meanwhile."""
        deadline = time.monotonic() + 20
        while True:
            self.subscriber.poll(0.05)
            self.subscriber.catch_up()
            held = self.subscriber.index.groups.get(0, {})
            seen = {name: (block.token_ids, block.extra_keys) for name, block in held.items()}
            if self.subscriber.index.exact and sorted(seen.values(), key=str) == sorted(
                self.content().values(), key=str
            ):
                return seen  # type: ignore[return-value]
            assert time.monotonic() < deadline, "the subscriber's picture stays wrong"

    def close(self) -> None:
        self.llm.shutdown()
        self.llm.shutdown()
        self.subscriber.close()


@pytest.fixture
def follow(tiny_folder: Callable[[str], Path]) -> Iterator[Callable[..., Followed]]:
    made: list[Followed] = []

    def make(events: dict[str, Any] | None = None, **options: Any) -> Followed:
        made.append(Followed(tiny_folder("llama"), events or {}, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def prompts(count: int) -> list[list[int]]:
    return [[5 + i % 3] * (30 + i) for i in range(count)]


def test_an_llm_publishes_what_its_cache_holds(follow: Callable[..., Followed]) -> None:
    engine = follow()
    engine.generate(prompts(20))
    assert engine.seen() == engine.content()
    assert engine.llm.reset_prefix_cache()
    assert engine.seen() == {}


def test_tenants_with_equal_prompts_are_told_apart(follow: Callable[..., Followed]) -> None:
    engine = follow()
    prompt = [7] * 40
    assert engine.generate([prompt], "one") == [0]
    assert engine.generate([prompt], "two") == [0]
    firsts = [keys for tokens, keys in engine.seen().values() if keys is not None]
    assert sorted(firsts) == [("one",), ("two",)]


def test_a_router_that_computes_names_predicts_every_hit(follow: Callable[..., Followed]) -> None:
    """With names like vLLM's it needs no event's tokens; They are the test's own here."""
    engine = follow(prefix_caching_hash_algo="sha256_cbor", sub_block_hits=False)
    hits = 0
    for salt in (None, "tenant", None, "tenant"):
        for prompt in prompts(6):
            held = engine.subscriber.index.groups.get(0, {})
            known = [name in held for name in chain(prompt[:-1], salt)]
            predicted = 16 * (known.index(False) if False in known else len(known))
            assert engine.generate([prompt], salt) == [predicted]
            engine.seen()
            hits += predicted
    assert hits > 0


def test_names_are_computed_beside_the_engine(
    follow: Callable[..., Followed], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    compute = names.CborNames._compute

    def noted(self: names.CborNames, change: Any, name: bytes) -> bytes:
        threads.add(threading.current_thread().name)
        return compute(self, change, name)

    monkeypatch.setattr(names.CborNames, "_compute", noted)
    engine = follow(prefix_caching_hash_algo="sha256_cbor")
    engine.generate(prompts(3))
    engine.seen()
    assert threads == {"octavo-kv-events"}


def test_an_engine_that_rests_publishes_what_happened(follow: Callable[..., Followed]) -> None:
    engine = follow()
    engine.generate(prompts(3))
    assert engine.seen()
    # Behind the engine's back, so that no call of its own publishes it.
    assert engine.llm.llm_engine.core.reset_prefix_cache()
    assert engine.seen() == {}


def test_an_engine_that_rests_mends_a_picture_that_no_replay_can(follow: Callable[..., Followed]) -> None:
    engine = follow({"buffer_steps": 2})
    engine.generate(prompts(3))
    late = Subscriber(*engine.ends)
    engine.subscriber, early = late, engine.subscriber
    late.catch_up()
    assert late.missed_batches > 0
    assert engine.seen() == engine.content()
    early.close()


def test_an_aborted_request_s_blocks_are_told_without_another_step(follow: Callable[..., Followed]) -> None:
    engine = follow()
    core_engine = engine.llm.llm_engine
    core_engine.add_request("a", {"prompt_token_ids": [5] * 50}, GREEDY)
    core_engine.step()
    core_engine.abort_request("a")
    assert engine.seen() == engine.content()


def test_an_engine_that_nobody_uses_any_more_goes(tiny_folder: Callable[[str], Path]) -> None:
    engine = Followed(tiny_folder("llama"), {})
    engine.generate(prompts(1))
    known = weakref.ref(engine.llm.llm_engine)
    engine.llm.llm_engine._events.close()  # type: ignore[union-attr]
    engine.subscriber.close()
    del engine
    gc.collect()
    assert known() is None
