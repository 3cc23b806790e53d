"""The progress of a long job: a bar on a terminal, nothing anywhere else."""

from __future__ import annotations

import sys
import time
from typing import Any

# Shorter jobs are over before a bar could be read.
_SHOW_AFTER_SECONDS = 1.0
_REFRESH_SECONDS = 0.2


class ProgressBar:
    """Counts finished requests and tokens; draws only on a terminal and only for jobs that last."""

    def __init__(self, total: int, *, enabled: bool) -> None:
        self._total = total
        self._enabled = enabled and sys.stderr.isatty()
        self._start = self._drawn = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._done = 0
        self._tokens = 0

    def update(self, *, requests: int, tokens: int) -> None:
        """Adds what a step finished."""
        self._done += requests
        self._tokens += tokens
        if not self._enabled:
            return
        now = time.monotonic()
        if now - self._start < _SHOW_AFTER_SECONDS or now - self._drawn < _REFRESH_SECONDS:
            return
        self._drawn = now
        if self._bar is None:
            self._open()
        rate = self._tokens / (now - self._start)
        self._bar.update(self._task, completed=self._done, rate=f"{rate:,.0f} tok/s")

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("generating"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("generating", total=self._total, rate="")
        self._bar.start()

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
