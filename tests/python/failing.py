"""The k-th call that touches a folder fails, for every k: opening, looking, listing, mapping, reading.

`fail_each` runs an operation with its first call failing, then its second, until it ran without a failure;
once with that call alone and once with all after it. Each time the operation has to do without the call or to
end in one of the errors given, which names the folder or a file in it; nothing may stay open, and the same
operation must succeed right after it.
"""

from __future__ import annotations

import builtins
import errno
import gc
import io
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def open_files() -> dict[str, str]:
    """Every open file of this process, by number."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # the listing's own
            continue
    return found


class FailingFile:
    """A file whose reads count as calls."""

    def __init__(self, file: Any, count: Callable[[str | None], None]) -> None:
        self._file = file
        self._count = count

    def read(self, *arguments: Any) -> Any:
        self._count(None)
        return self._file.read(*arguments)

    def __enter__(self) -> FailingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class Failing:
    """Counts the calls that name a folder or what is in it; the k-th raises OSError."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._folder = str(folder)
        self._left = 0
        self._sticky = False
        self._code = 0
        self.failed = False
        opening = io.open
        for owner in (io, builtins):
            monkeypatch.setattr(owner, "open", self._wrap_open(opening))
        for name in ("stat", "scandir"):
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name), names=True))
        for name in ("fstat", "preadv"):
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name), names=False))
        monkeypatch.setattr(mmap, "mmap", self._wrap_map(mmap.mmap))

    def arm(self, k: int, code: int, *, sticky: bool) -> None:
        self._left, self._code, self._sticky, self.failed = k, code, sticky, False

    def disarm(self) -> None:
        self._left = 0

    def _count(self, path: str | None) -> None:
        if self._left == 0:
            return
        self._left -= 1
        if self._left == 0:
            self.failed = True
            self._left = int(self._sticky)
            raise OSError(self._code, os.strerror(self._code), *((path,) if path else ()))

    def _wrap(self, call: Any, *, names: bool) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            path = os.fspath(arguments[0]) if names and not isinstance(arguments[0], int) else None
            if not names or (isinstance(path, str) and path.startswith(self._folder)):
                self._count(path)
            return call(*arguments, **options)

        return counted

    def _wrap_open(self, opening: Any) -> Any:
        def counted(file: Any, *arguments: Any, **options: Any) -> Any:
            path = "" if isinstance(file, int) else os.fspath(file)
            if self._left == 0 or not isinstance(path, str) or not path.startswith(self._folder):
                return opening(file, *arguments, **options)
            self._count(path)
            return FailingFile(opening(file, *arguments, **options), self._count)

        return counted

    def _wrap_map(self, mapping: type[mmap.mmap]) -> Any:
        counted = self._count

        class Counted(mapping):  # type: ignore[valid-type, misc]
            def __new__(cls, *arguments: Any, **options: Any) -> Any:
                counted(None)
                return super().__new__(cls, *arguments, **options)

            def madvise(self, *arguments: Any) -> None:
                counted(None)
                super().madvise(*arguments)

        return Counted


def fail_each(
    failing: Failing,
    operation: Callable[[], object],
    errors: type[BaseException] | tuple[type[BaseException], ...],
    names: str,
    codes: tuple[int, ...] = (errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ENOENT),
) -> int:
    """Fail each call of an operation in turn; how many failures it answered with an error."""
    operation()  # what is only ever opened once is open now
    answered = 0
    for code in codes:
        for sticky in (False, True):
            for k in range(1, 1000):
                before = open_files()
                failing.arm(k, code, sticky=sticky)
                try:
                    operation()
                except errors as error:
                    answered += 1
                    assert names in str(error), error
                    assert failing.failed, error
                finally:
                    failing.disarm()
                if open_files() != before:
                    gc.collect()
                    assert open_files() == before
                if not failing.failed:
                    break
                operation()
            else:
                raise AssertionError("an operation that never ends without a failure")
    return answered
