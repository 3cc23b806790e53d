"""The option kv_events_config."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.config import CacheConfig
from octavo.kv_events import KvEventsConfig
from octavo.kv_events.settings import parse_kv_events_config


def test_events_are_off_unless_enabled() -> None:
    assert not CacheConfig().kv_events.enabled
    assert not parse_kv_events_config({"endpoint": "tcp://*:1"}).enabled
    assert parse_kv_events_config({"enable_kv_cache_events": True}).publisher == "zmq"
    assert not parse_kv_events_config({"enable_kv_cache_events": True, "publisher": "null"}).enabled


def test_defaults_are_those_of_vllm() -> None:
    config = KvEventsConfig()
    assert (config.endpoint, config.replay_endpoint, config.topic) == ("tcp://*:5557", None, "")
    assert (config.buffer_steps, config.hwm, config.max_queue_size) == (10_000, 100_000, 100_000)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"end_point": "tcp://*:1"}, "end_point"),
        ({"endpoint": "5557"}, "kv_events_config.endpoint='5557'"),
        ({"endpoint": 5557}, "kv_events_config.endpoint=5557"),
        ({"replay_endpoint": "tcp://*"}, "kv_events_config.replay_endpoint"),
        ({"publisher": "kafka"}, "kv_events_config.publisher='kafka'"),
        ({"buffer_steps": 0}, "kv_events_config.buffer_steps=0"),
        ({"hwm": True}, "kv_events_config.hwm=True"),
        ({"enable_kv_cache_events": "yes"}, "kv_events_config.enable_kv_cache_events='yes'"),
        ({"topic": 5}, "kv_events_config.topic=5"),
        ("on", "kv_events_config='on'"),
    ],
)
def test_bad_values_are_named(given: Any, named: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_kv_events_config(given)
    assert named in str(error.value)


def test_blocks_are_named_by_the_core_s_hashes_unless_vllm_s_are_asked_for() -> None:
    assert CacheConfig().prefix_caching_hash_algo == "xxh3"
    assert CacheConfig(prefix_caching_hash_algo="sha256_cbor").prefix_caching_hash_algo == "sha256_cbor"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sha256", "use sha256_cbor"),
        ("xxhash", "use sha256_cbor"),
        ("sha256_cobr", "did you mean 'sha256_cbor'"),
        (None, "use one of xxh3, sha256_cbor"),
    ],
)
def test_other_hashes_are_refused_with_what_to_use(given: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:
        CacheConfig(prefix_caching_hash_algo=given)
    assert f"prefix_caching_hash_algo={given!r}" in str(error.value)
    assert said in str(error.value)


def test_events_without_a_prefix_cache_are_refused() -> None:
    with pytest.raises(ValueError, match="enable_prefix_caching"):
        CacheConfig(kv_events_config={"enable_kv_cache_events": True}, enable_prefix_caching=False)
