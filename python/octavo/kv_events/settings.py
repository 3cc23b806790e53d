"""The option `kv_events_config`: where KV events go and how much is kept for those who missed some."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import did_you_mean, invalid

PUBLISHERS = ("zmq", "null")
_MOST = 2**31 - 1
_ENDPOINT = re.compile(r"(tcp://.+:\d+|ipc://.+|inproc://.+)")


@dataclass(frozen=True, kw_only=True)
class KvEventsConfig:
    """Names and defaults are those of vLLM's KVEventsConfig."""

    enable_kv_cache_events: bool = False
    publisher: str | None = None  # None: zmq when events are enabled
    endpoint: str = "tcp://*:5557"  # of the PUB socket: bound with a wildcard, ipc:// or inproc://
    replay_endpoint: str | None = None  # of the ROUTER socket that repeats missed batches; None: no replay
    buffer_steps: int = 10_000  # batches kept for replay
    hwm: int = 100_000  # messages a slow subscriber may lag behind before it loses some
    max_queue_size: int = 100_000  # batches that may wait for the sender before some are dropped
    topic: str = ""
    int_block_hashes: bool = False  # the low 64 bits of a hash as an integer instead of its bytes

    def __post_init__(self) -> None:
        for field in ("enable_kv_cache_events", "int_block_hashes"):
            if not isinstance(getattr(self, field), bool):
                raise _refused(field, getattr(self, field), "use true or false")
        if self.publisher is None:
            object.__setattr__(self, "publisher", "zmq" if self.enable_kv_cache_events else "null")
        if self.publisher not in PUBLISHERS:
            raise _refused("publisher", self.publisher, f"use one of {', '.join(PUBLISHERS)}")
        _check_endpoint("endpoint", self.endpoint)
        if self.replay_endpoint is not None:
            _check_endpoint("replay_endpoint", self.replay_endpoint)
        for field in ("buffer_steps", "hwm", "max_queue_size"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
                raise _refused(field, value, f"use an integer from 1 to {_MOST}")
        if not isinstance(self.topic, str):
            raise _refused("topic", self.topic, "use text")

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded and sent."""
        return self.enable_kv_cache_events and self.publisher == "zmq"


def parse_kv_events_config(value: Any) -> KvEventsConfig:
    """A KvEventsConfig from one, from a mapping of its fields, or from None (events off).

    Raises ValueError, naming the field, for anything else.
    """
    if value is None:
        return KvEventsConfig()
    if isinstance(value, KvEventsConfig):
        return value
    if not isinstance(value, Mapping):
        raise invalid("kv_events_config", value, 'use a mapping such as {"enable_kv_cache_events": true}')
    known = [field.name for field in dataclasses.fields(KvEventsConfig)]
    for name in value:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise invalid("kv_events_config", name, f"the fields are {', '.join(known)}{hint}")
    return KvEventsConfig(**value)


def _check_endpoint(field: str, value: Any) -> None:
    if not isinstance(value, str) or _ENDPOINT.fullmatch(value) is None:
        raise _refused(field, value, "use tcp://HOST:PORT (HOST * binds), ipc://PATH or inproc://NAME")


def _refused(field: str, value: Any, remedy: str) -> ValueError:
    return invalid(f"kv_events_config.{field}", value, remedy)
