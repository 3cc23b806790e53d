"""Steps that have begun and are not finished: one on a CPU, two where the runner runs beside the host.

With two, the host plans and launches a step while the one before it runs, so that the device finds its next
work waiting. The tokens in between are known to the device only (docs/contracts/batch.md, clause 7). Where
steps are captured, a loop in C++ does so on a thread of its own (docs/contracts/loop.md).
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import deque
from typing import Any, NamedTuple, Protocol

from octavo import core
from octavo.runner.batch import PendingStep, StepResult

logger = logging.getLogger("octavo")

_ERROR = core.FINISH_REASONS.index("error")


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


class Outcome(NamedTuple):
    """A step that is over: what the core says happened, and what came with it, or why it failed."""

    changes: Any  # None: nobody was in it any more
    result: StepResult | None = None
    failure: str | None = None


class Steps(Protocol):
    """Turns the crank of an engine."""

    def next(self) -> Outcome | None:
        """Finishes the oldest step, and has others under way; None: there is nothing to run."""

    def rest(self) -> Outcome | None:
        """Finishes a step that nobody waits for; None: none is open."""

    def fail(self) -> Outcome | None:
        """Ends the requests whose tokens an interrupt has lost."""


class FailedLaunch:
    """A step that could not be started: it fails when its turn comes, after the older one's tokens are in."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def result(self) -> StepResult:
        raise self.error


class Pipeline:
    """Begins steps and finishes them, oldest first, on the caller's thread."""

    def __init__(self, engine: core.Engine, runner: Runner) -> None:
        self._core = engine
        self._runner = runner
        self._open: deque[OpenStep] = deque()

    def next(self) -> Outcome | None:
        """Launches what the runner's depth allows and finishes the oldest step; None: nothing can run."""
        self._fill()
        while not self._open and self._core.wait_for_loads():
            self._fill()  # whoever waited for keys and values has them
        return self.rest()

    def rest(self) -> Outcome | None:
        """Finishes the oldest step; None: none is open."""
        if not self._open:
            return None
        oldest = self._open[0]
        try:
            result = oldest.pending.result()
            changes = self._core.finish_step(oldest.step_id, result.tokens)
        except Exception as error:
            logger.error("a step of %d requests failed: %s", oldest.num_rows, error, exc_info=True)
            return Outcome(self._fail(), failure=f"{type(error).__name__}: {error}")
        self._open.popleft()
        return Outcome(changes, result)

    def fail(self) -> Outcome | None:
        """Fails every open step."""
        return Outcome(self._fail(), failure="interrupted")

    def _fill(self) -> None:
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

    def _fail(self) -> Any:
        """Fails every open step in the core and returns what it says: later ones rest on the oldest.

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


class LoopedSteps:
    """Takes the steps of a loop that runs them on a thread of its own, and launches those that it cannot.

    Shapes that have no graph yet are such, and steps of which more is wanted than their tokens.
    """

    def __init__(self, engine: core.Engine, loop: core.StepLoop, runner: Runner) -> None:
        self._core, self._loop, self._runner = engine, loop, runner
        self._launched: dict[int, PendingStep] = {}
        self._taken: Any = None  # what the caller is busy with
        # Before what the loop works on goes away, and before the interpreter does.
        weakref.finalize(self, loop.stop)

    def next(self) -> Outcome | None:
        """The next step that is over; None: nothing can run."""
        self._taken = None
        while (news := self._loop.next()) is not None:
            if news.plan is None:
                self._taken = news.outputs
                return self._outcome(news)
            self._launch(news.plan)
        return None

    def rest(self) -> Outcome | None:
        """The same: it does not end before the open steps have."""
        return self.next()

    def fail(self) -> Outcome | None:
        """Ends the requests of the step that was handed out last. The open ones go on."""
        if self._taken is None:
            return None
        lost = self._taken.copy()
        lost["token"], lost["finish"] = -1, _ERROR
        for core_id in lost["request"].tolist():
            with contextlib.suppress(KeyError):  # it ended in that step, or was named twice
                self._core.abort(core_id)
        return Outcome(lost, failure="interrupted")

    def _launch(self, plan: core.StepPlan) -> None:
        step_id, error = plan.step_id, "interrupted"
        try:
            self._launched[step_id] = self._runner.launch(plan)
            error = ""
        except Exception as failed:
            self._launched[step_id] = FailedLaunch(failed)
            error = f"{type(failed).__name__}: {failed}"
        finally:
            self._loop.launched(error or None)

    def _outcome(self, news: core.StepNews) -> Outcome:
        pending = self._launched.pop(news.step_id, None)
        if news.failure is not None:
            self._launched.clear()
            cause = pending.error if isinstance(pending, FailedLaunch) else None
            logger.error("a step of %d requests failed: %s", news.num_rows, news.failure, exc_info=cause)
            return Outcome(news.outputs, failure=news.failure)
        return Outcome(news.outputs, None if pending is None else pending.result())
