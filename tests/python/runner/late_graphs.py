"""Graphs and their queue on CPU tensors: what is launched runs when the loop's thread waits for it."""

from __future__ import annotations

import ctypes
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from octavo.runner.shapes import StepShape

_COPY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_SLOT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_EXPLAIN = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)


class _DeviceQueue(ctypes.Structure):
    """DeviceQueue of octavo/executor.h."""

    _fields_ = (
        ("context", ctypes.c_void_p),
        ("copy", _COPY),
        ("launch", _LAUNCH),
        ("mark", _SLOT),
        ("wait", _SLOT),
        ("explain", _EXPLAIN),
    )


class LateQueue:
    """A DeviceQueue whose work is done when somebody waits for it, or by chance before.

    `errors`: what the next calls of a function return, by its name.
    """

    def __init__(self, seed: int, *, hurry: float = 0.3) -> None:
        self._draw, self._hurry = random.Random(seed), hurry
        self._tasks: deque[Callable[[], None]] = deque()
        self._lock = threading.RLock()
        self._done = 0
        self._marks: dict[int, int] = {}
        self._graphs: list[Callable[[], None]] = []
        self.errors: dict[str, list[int]] = {}
        self.launches = 0
        self._message = ctypes.create_string_buffer(b"the device is lost")
        self._queue = _DeviceQueue(
            None,
            _COPY(self._copy),
            _LAUNCH(self._launch),
            _SLOT(self._mark),
            _SLOT(self._wait),
            _EXPLAIN(lambda *_: ctypes.addressof(self._message)),
        )
        self.address = ctypes.addressof(self._queue)

    def graph(self, run: Callable[[], None]) -> int:
        """The handle of something to run."""
        self._graphs.append(run)
        return len(self._graphs)

    def run(self, until: int | None = None) -> None:
        """Does what was asked for, up to a mark."""
        with self._lock:
            while self._tasks and (until is None or self._done < until):
                self._tasks.popleft()()
                self._done += 1

    def in_turn(self, launch: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A launch from Python, which computes at once: after what was asked for before, and alone."""

        def launched(plan: Any) -> Any:
            with self._lock:
                self.run()
                return launch(plan)

        return launched

    def _error(self, call: str) -> int:
        errors = self.errors.get(call)
        return errors.pop(0) if errors else 0

    def _ask(self, task: Callable[[], None]) -> None:
        with self._lock:
            self._tasks.append(task)
            while self._tasks and self._draw.random() < self._hurry:
                self.run(self._done + 1)

    def _copy(self, _: Any, target: int, source: int, count: int) -> int:
        self._ask(lambda: ctypes.memmove(target, source, count) and None)
        return self._error("copy")

    def _launch(self, _: Any, graph: int) -> int:
        self.launches += 1
        self._ask(self._graphs[graph - 1])
        return self._error("launch")

    def _mark(self, _: Any, slot: int) -> int:
        with self._lock:
            self._marks[slot] = self._done + len(self._tasks)
        return self._error("mark")

    def _wait(self, _: Any, slot: int) -> int:
        self.run(self._marks[slot])
        return self._error("wait")


class LateGraphs:
    """octavo.runner.graphs.StepGraphs: a shape is captured after its first step."""

    def __init__(
        self,
        queue: LateQueue,
        compute: Callable[[StepShape], None],
        captured: Callable[[StepShape, int], None],
    ) -> None:
        self._queue, self._compute, self._captured = queue, compute, captured
        self._known: set[StepShape] = set()

    def run(self, shape: StepShape) -> None:
        self._compute(shape)
        if shape.graphed and shape not in self._known:
            self._known.add(shape)
            self._captured(shape, self._queue.graph(lambda: self._replay(shape)))

    def _replay(self, shape: StepShape) -> None:
        with torch.inference_mode():
            self._compute(shape)
