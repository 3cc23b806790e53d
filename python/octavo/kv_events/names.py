"""Names of cached content: the hash that an event gives a block.

The core calls content by hashes of its own, seeded anew in each process. `NativeNames` publishes those.
`CborNames` gives content the name that vLLM's `sha256_cbor` gives it, so that engines and routers agree on it
without having talked: SHA-256 of the canonical CBOR of [name before, token ids, extra keys or null], for each
hash unit, chained from the start of the sequence. What stands before a first unit is the SHA-256 of the CBOR
of $PYTHONHASHSEED, or of "vllm-none-hash" where that is not set.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, Protocol

from octavo import env
from octavo.kv_events.wire import BlockHash

try:
    import cbor2
except ImportError:
    cbor2 = None  # type: ignore[assignment, unused-ignore]

Change = dict[str, Any]  # what octavo.core.Engine.take_events says of one block
_DEFAULT_SEED = "vllm-none-hash"
_REMEMBERED = 1 << 16  # names of content that has left, at least
# Blocks named before the engine's thread may have the interpreter; Python by itself hands it over after 5 ms.
_TURN = 8


class Names(Protocol):
    """Gives the blocks of one engine their names, told of its changes in order. None: it cannot be known."""

    def stored(self, change: Change) -> BlockHash | None:
        """The name of a block that was stored."""

    def parent(self, change: Change) -> BlockHash | None:
        """The name of the content before it; asked right after `stored`. None for the first of a sequence."""

    def removed(self, change: Change) -> BlockHash | None:
        """The name of a block that left."""

    def cleared(self) -> None:
        """Every block left."""


class NativeNames:
    """The core's own hashes: 16 bytes, or their low 64 bits as an integer."""

    def __init__(self, *, as_integers: bool = False) -> None:
        self._as_integers = as_integers

    def stored(self, change: Change) -> BlockHash | None:
        return self._name(change["hash"])

    def parent(self, change: Change) -> BlockHash | None:
        return self._name(change["parent"]) if change["start"] > 0 else None

    def removed(self, change: Change) -> BlockHash | None:
        return self._name(change["hash"])

    def cleared(self) -> None:
        pass

    def _name(self, digest: bytes) -> BlockHash:
        return int.from_bytes(digest[:8], "little") if self._as_integers else digest


class CborNames:
    """vLLM's sha256_cbor: 32 bytes, or their last 8 as an integer.

    `unit`: tokens that are hashed at a time, the greatest common divisor of all groups' block sizes. A name
    follows from the name before it, so names are kept for what is cached and for what left lately.
    """

    def __init__(self, unit: int, *, as_integers: bool = False, seed: str | None = None) -> None:
        self._digest = _cbor_digest()
        if seed is None:
            seed = env.hash_seed()
        self._root = self._digest(_DEFAULT_SEED if seed is None else seed)
        self._unit = unit
        self._as_integers = as_integers
        self._held: defaultdict[int, dict[bytes, bytes]] = defaultdict(dict)  # by group and the core's hash
        self._left: OrderedDict[bytes, bytes] = OrderedDict()  # by the core's hash, the latest last
        self._before = self._root
        self._computed = 0

    def stored(self, change: Change) -> BlockHash | None:
        known = change["hash"]
        before = self._root if change["start"] == 0 else self._find(change["parent"])
        if before is None:
            return None
        self._before = before
        name = self._find(known) or self._compute(change, before)
        self._left.pop(known, None)
        self._held[change["group"]][known] = name
        return self._shown(name)

    def parent(self, change: Change) -> BlockHash | None:
        return self._shown(self._before) if change["start"] > 0 else None

    def removed(self, change: Change) -> BlockHash | None:
        held = self._held[change["group"]]
        name = held.pop(change["hash"], None)
        if name is None:
            return None
        self._left[change["hash"]] = name
        while len(self._left) > max(_REMEMBERED, len(held)):
            self._left.popitem(last=False)
        return self._shown(name)

    def cleared(self) -> None:
        # After a loss the same content is told again, some of it without what stood before it.
        for held in self._held.values():
            self._left.update(held)
        self._held.clear()

    def _find(self, known: bytes) -> bytes | None:
        for held in self._held.values():
            if (name := held.get(known)) is not None:
                return name
        return self._left.get(known)

    def _compute(self, change: Change, name: bytes) -> bytes:
        self._computed += 1
        if self._computed % _TURN == 0:
            time.sleep(0)
        tokens, extra = change["token_ids"], change["extra"]
        for first in range(0, len(tokens), self._unit):
            unit = tokens[first : first + self._unit]
            keys = None if extra is None else _tagged_keys(extra, first, first + self._unit)
            name = self._digest((name, unit, keys))
        return name

    def _shown(self, name: bytes) -> BlockHash:
        return int.from_bytes(name[-8:], "big") if self._as_integers else name


def _cbor_digest() -> Callable[[Any], bytes]:
    if cbor2 is None:
        raise ImportError(
            "prefix_caching_hash_algo='sha256_cbor' needs cbor2: pip install 'octavo[events]', or use 'xxh3'"
        )

    def digest(value: Any) -> bytes:
        return hashlib.sha256(cbor2.dumps(value, canonical=True)).digest()

    return digest


def _tagged_keys(extra: Any, first: int, end: int) -> list[tuple[Any, ...]] | None:
    """What vLLM hashes of the tokens [first, end) of a block besides the tokens themselves."""
    salt, items = extra
    keys: list[tuple[Any, ...]] = [
        ("mm", digest.hex(), start - first)
        for digest, start, length in items
        if start < end and start + length > first
    ]
    if salt and first == 0:
        keys.append(("cache_salt", salt))
    return keys or None


def event_keys(extra: Any) -> tuple[Any, ...] | None:
    """A block's entry of `BlockStored.extra_keys`: (identifier, offset) of each item, then the salt."""
    if extra is None:
        return None
    salt, items = extra
    return (*((digest.hex(), start) for digest, start, _ in items), *((salt,) if salt else ()))
