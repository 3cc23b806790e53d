"""When retention ends: deadlines in a plain dict, as docs/contracts/kv.md, clause 34, tells it."""

from __future__ import annotations

from collections.abc import Callable

TICK = 1024  # microseconds; durations are rounded up to whole ones
LEAST_AGAIN = 1_000_000  # a block that somebody holds when its time is over is asked about again


class NaiveTimers:
    """Of each block: when its time is over, and how long it lasts. Of equal ends the first begun is first."""

    def __init__(self) -> None:
        self.now = 0  # ticks, of the latest `expire`
        self.due: dict[int, tuple[int, int]] = {}  # block: tick, duration
        self.ended = self.put_off = 0

    def set(self, block: int, duration: int, since: int = 0) -> None:
        """Begins the time of a block at `since` (microseconds), not before the latest `expire`."""
        ticks = max(1, -(-duration // TICK))
        self.due.pop(block, None)
        self.due[block] = (max(self.now, since // TICK) + ticks, duration)

    def restart(self, block: int, since: int) -> None:
        if block in self.due:
            self.set(block, self.due[block][1], since)

    def cancel(self, block: int) -> None:
        self.due.pop(block, None)

    def expire(self, now: int, end: Callable[[int], bool]) -> None:
        """Calls `end` for what is due; False puts it off."""
        self.now = max(self.now, now // TICK)
        over = [(tick, block) for block, (tick, _) in self.due.items() if tick <= self.now]
        for _, block in sorted(over, key=lambda item: item[0]):
            _, duration = self.due.pop(block)
            if end(block):
                self.ended += 1
            else:
                self.put_off += 1
                ticks = -(-max(LEAST_AGAIN, duration) // TICK)
                self.due[block] = (self.now + ticks, duration)
