"""Steps that have begun and are not finished: one on a CPU, two where the runner runs beside the host.

With two, the host plans and launches a step while the one before it runs, so that the device finds its next
work waiting. The tokens in between are known to the device only (docs/contracts/batch.md, clause 7).
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any, NamedTuple, Protocol

from octavo import core
from octavo.runner.batch import PendingStep, StepResult


class Runner(Protocol):
    """What runs planned steps: octavo.runner's, or a stand-in in tests.

    `depth`: how many steps may be launched before the first is waited for. Steps run in the order of their
    launches; a result is read before its step is finished.
    """

    depth: int

    def launch(self, plan: core.StepPlan) -> PendingStep:
        """Starts a step. The columns are the step's own until it is finished."""


class OpenStep(NamedTuple):
    """A step that has begun. The plan is the core's memory: only numbers are kept."""

    step_id: int
    num_rows: int
    pending: PendingStep


class FailedLaunch:
    """A step that could not be started: it fails when its turn comes, after the older one's tokens are in."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def result(self) -> StepResult:
        raise self._error


class Pipeline:
    """Begins steps and hands them out again, oldest first."""

    def __init__(self, engine: core.Engine, runner: Runner) -> None:
        self._core = engine
        self._runner = runner
        self._open: deque[OpenStep] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def fill(self) -> None:
        """Begin and launch steps up to the runner's depth, as far as there is something to plan."""
        while len(self._open) < self._runner.depth:
            plan = self._core.begin_step()
            if plan is None:
                return
            step_id, num_rows = plan.step_id, plan.num_rows
            # Before the launch: whatever interrupts it, the step is known to be open.
            self._open.append(OpenStep(step_id, num_rows, FailedLaunch(RuntimeError("not launched"))))
            try:
                pending = self._runner.launch(plan)
            except Exception as error:
                pending = FailedLaunch(error)
            self._open[-1] = OpenStep(step_id, num_rows, pending)

    @property
    def oldest(self) -> OpenStep | None:
        """The step to finish next."""
        return self._open[0] if self._open else None

    def finished(self) -> None:
        """The oldest step has been finished in the core."""
        self._open.popleft()

    def fail(self) -> Any:
        """Fail every open step in the core and return what it says: later ones rest on the oldest.

        They are waited for first: a step that still ran would read tables that the core gives to others.
        """
        steps = list(self._open)
        self._open.clear()
        for step in steps:
            with contextlib.suppress(Exception):
                step.pending.result()
        for step in steps:
            # Refused where an interrupt came after the core had taken this step's tokens.
            with contextlib.suppress(ValueError, RuntimeError):
                return self._core.fail_step(step.step_id)
        return None
