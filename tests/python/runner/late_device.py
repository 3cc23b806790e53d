"""A device on CPU tensors whose streams run at their own pace: copies come late, and steps too.

Every stream keeps its order, nothing else is promised: a copy runs when somebody waits for it, or earlier by
chance. What is copied to holds NaNs until then.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from octavo import ops


class LateMark:
    def __init__(self, stream: LateStream, place: int) -> None:
        self.stream, self.place = stream, place

    def query(self) -> bool:
        self.stream.device.stroll()
        if self.stream.device.fails():
            raise RuntimeError("a copy failed")
        return self.stream.passed >= self.place

    def synchronize(self) -> None:
        self.stream.run_to(self.place)


class LateStream:
    """What was asked for and has not run, in order. `passed` counts what has run."""

    def __init__(self, device: LateDevice) -> None:
        self.device, self.passed = device, 0
        self._tasks: deque[Callable[[], None]] = deque()

    def ask(self, task: Callable[[], None]) -> None:
        self._tasks.append(task)

    def mark(self) -> LateMark:
        return LateMark(self, self.passed + len(self._tasks))

    def wait_for(self, mark: LateMark) -> None:
        self.ask(mark.synchronize)

    def run_to(self, place: int) -> None:
        while self.passed < place:
            task = self._tasks.popleft()
            self.passed += 1
            task()

    def forget(self) -> None:
        """What has not run never will."""
        self.passed += len(self._tasks)
        self._tasks.clear()

    def copy(self, pool: torch.Tensor, memory: torch.Tensor, runs: torch.Tensor, *, to_pool: bool) -> None:
        if self.device.fails():
            raise RuntimeError("a copy was refused")
        if not to_pool:
            for _, place, size in runs.tolist():
                memory[place : place + size] = 0xFF  # NaN in any float
        for run in runs.split(1):
            self.ask(lambda run=run: ops.copy_runs(pool, memory, run, to_pool=to_pool))  # type: ignore[misc]
        self.device.stroll()


class LateDevice:
    """octavo.runner.tier.Queues. `hurry`: how often streams go on by themselves; `failing`: how often they
    fail. Steps are LateSteps, or run as they are launched.
    """

    def __init__(self, seed: int, *, hurry: float = 0.3, failing: float = 0.0, late: bool = True) -> None:
        self._draw = random.Random(seed)
        self._hurry, self._failing, self._late = hurry, failing, late
        self.streams: list[LateStream] = []
        self.steps = LateStream(self)
        self.failures = 0

    def make(self) -> LateStream:
        self.streams.append(LateStream(self))
        return self.streams[-1]

    def hold_steps(self, mark: LateMark) -> None:
        self.steps.wait_for(mark)
        if not self._late:
            self.steps.run_to(self.steps.mark().place)

    def stroll(self) -> None:
        """Some streams go on a little."""
        for stream in self.streams:
            while self._draw.random() < self._hurry and stream.mark().place > stream.passed:
                stream.run_to(stream.passed + 1)

    def fails(self) -> bool:
        if self._draw.random() >= self._failing:
            return False
        self.failures += 1
        for stream in self.streams:
            stream.forget()
        return True


class LateSteps:
    """A runner whose steps run when their results are wanted, in the order of their launches."""

    def __init__(self, runner: Any, device: LateDevice) -> None:
        self.runner, self.device, self.depth = runner, device, runner.depth

    def launch(self, plan: Any) -> Any:
        pending: list[Any] = []
        self.device.steps.ask(lambda: pending.append(self.runner.launch(plan)))
        return LateStep(self.device.steps.mark(), pending)


class LateStep:
    def __init__(self, mark: LateMark, pending: list[Any]) -> None:
        self._mark, self._pending = mark, pending

    def result(self) -> Any:
        self._mark.synchronize()
        return self._pending[0].result()
