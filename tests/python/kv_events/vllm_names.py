"""Names of blocks as vLLM's sha256_cbor gives them, written down a second time."""

from __future__ import annotations

import hashlib
from typing import Any


def first_parent() -> bytes:
    """What stands before a sequence."""
    return hashlib.sha256(cbor("vllm-none-hash")).digest()


def name(before: bytes, tokens: list[int], extra: Any) -> bytes:
    """The name of a block of one unit; `extra` as octavo.core tells it."""
    salt, items = extra or ("", [])
    keys: list[Any] = [["mm", digest.hex(), start] for digest, start, _ in items]
    keys += [["cache_salt", salt]] if salt else []
    return hashlib.sha256(cbor([before, tokens, keys or None])).digest()


def chain(tokens: list[int], salt: str | None, size: int = 16) -> list[bytes]:
    """The names of a prompt's full blocks."""
    names = [first_parent()]
    for first in range(0, len(tokens) - size + 1, size):
        extra = (salt, []) if salt and first == 0 else None
        names.append(name(names[-1], tokens[first : first + size], extra))
    return names[1:]


def cbor(value: Any) -> bytes:
    """Canonical CBOR of what is hashed."""
    if value is None:
        return b"\xf6"
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        return _head(3, len(value.encode())) + value.encode()
    if isinstance(value, int):
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    return _head(4, len(value)) + b"".join(cbor(item) for item in value)


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << (8 * size):
            return bytes([major << 5 | info]) + number.to_bytes(size, "big")
    raise ValueError(number)
