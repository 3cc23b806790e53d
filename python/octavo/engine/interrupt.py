"""Ctrl-C between two steps, for everything that drives an engine in a loop."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interrupt:
    """Turns the first Ctrl-C into a flag that is read between two steps; a second one raises at once.

    A KeyboardInterrupt at an arbitrary instruction could leave the caller and the core with different ideas
    of which requests exist. Only the main thread may enter it.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> Interrupt:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
