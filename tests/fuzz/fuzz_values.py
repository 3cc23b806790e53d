"""A fuzzer's input, read as decisions: numbers, text and JSON values. The twin of bytes.h."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

NUMBERS: tuple[Any, ...] = (
    0,
    1,
    -1,
    2,
    3,
    4,
    64,
    255,
    256,
    2**31 - 1,
    2**31,
    -(2**31),
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    10**400,
    0.0,
    -0.0,
    0.5,
    1.0,
    1.5,
    1e-320,
    1e-30,
    1e30,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
)
TEXTS = ("", "a", "user", "\ud800", "\x00", "é", "\u2028", "1", "-1", "<s>", "{{", "{% for %}", "a" * 5000)


class Bytes:
    """Answers zero behind its end, so that every input is a whole program."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, n: int) -> int:
        return self.byte() % n

    def one_in(self, n: int) -> bool:
        return self.below(n) == n - 1

    def choose(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def rest(self) -> bytes:
        data, self._at = self._data[self._at :], len(self._data)
        return data

    def number(self) -> Any:
        return self.below(40) if self.byte() < 128 else self.choose(NUMBERS)

    def text(self) -> str:
        if self.byte() < 128:
            return self.choose(TEXTS)
        length = self.below(24)
        return bytes(self.byte() for _ in range(length)).decode("utf-8", "surrogateescape")

    def json(self, depth: int = 3) -> Any:
        """What json.loads can return; at times deeper than anything expects."""
        kind = self.below(9 if depth > 0 else 5)
        if kind == 0:
            return self.choose((None, True, False))
        if kind in (1, 2):
            return self.number()
        if kind in (3, 4):
            return self.text()
        if kind in (5, 6):
            return [self.json(depth - 1) for _ in range(self.below(5))]
        if kind == 7:
            return {self.text(): self.json(depth - 1) for _ in range(self.below(5))}
        return self.nest()

    def nest(self) -> Any:
        value: Any = self.number()
        as_list = self.one_in(2)
        for _ in range(self.choose((5, 63, 64, 65, 300, 900, 960, 980))):
            value = [value] if as_list else {"a": value}
        return value
