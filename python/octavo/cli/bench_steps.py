"""`octavo bench steps`: how long steps take on this machine, as a cost model for `octavo simulate`."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli.errors import CommandError, UsageError
from octavo.cli.workload import random_tokens
from octavo.plan import machine

if TYPE_CHECKING:
    import numpy as np

    from octavo.engine.llm_engine import LLMEngine
    from octavo.plan import Plan

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
ROWS = (1, 2, 4, 8, 16, 32, 64)
EXTRA = (0, 16, 64, 256, 1024)
CONTEXT = (0, 256, 1024)
_MOST_STEPS = 100_000  # of the prefills before a measurement


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Steps to measure: each number of rows with each number of extra tokens after each context."""

    rows: tuple[int, ...]
    extra: tuple[int, ...]
    context: tuple[int, ...]
    repeats: int = 5

    @classmethod
    def for_plan(
        cls,
        plan: Plan,
        *,
        rows: Sequence[int] | None = None,
        extra: Sequence[int] | None = None,
        context: Sequence[int] | None = None,
        repeats: int = 5,
    ) -> Grid:
        """Return the grid asked for, or the part of the default one that the engine can run.

        Raises UsageError for a grid that it cannot.
        """
        # What a request that decodes through the whole measurement grows by.
        steps = (len(extra or EXTRA) + 1) * (repeats + 1)
        longest = plan.max_model_len - 2 - steps
        block = plan.block_size
        made = cls(
            rows=_axis(rows, ROWS, plan.max_num_seqs),
            context=tuple(sorted({value // block * block for value in _axis(context, CONTEXT, longest)})),
            extra=(0,),
            repeats=repeats,
        )
        most = min(plan.max_num_batched_tokens - made.rows[-1], longest - made.context[-1])
        made = cls(rows=made.rows, context=made.context, extra=_axis(extra, EXTRA, most), repeats=repeats)
        made.check(plan, longest, most, steps)
        return made

    def check(self, plan: Plan, longest: int, most: int, steps: int) -> None:
        """Raises UsageError if some step of the grid cannot be made."""
        if self.rows[0] < 1 or self.rows[-1] > plan.max_num_seqs:
            raise UsageError(f"--rows has {self.rows}; use 1 to --max-num-seqs, {plan.max_num_seqs}")
        if self.context[0] < 0 or self.context[-1] > longest:
            raise UsageError(f"--context has {self.context[-1]}; the engine leaves room for {longest}")
        # The first rows decode while the last ones' prompts are computed.
        prefill = self.rows[-1] * max(self.context[-1], 1) // plan.max_num_batched_tokens + 1
        if self.context[-1] + prefill > longest:
            raise UsageError(
                f"{self.rows[-1]} rows after {self.context[-1]} tokens take {prefill} steps to get there, "
                f"and the engine leaves room for {longest} tokens; lower --rows or --context"
            )
        if self.extra[0] != 0 or self.extra[-1] > most:
            raise UsageError(f"--extra has {self.extra}; use 0 to {most}, 0 among them")
        blocks = self.rows[-1] * plan.footprint.blocks_of(self.context[-1] + steps + self.extra[-1])
        if blocks > plan.num_blocks - 1:
            raise UsageError(
                f"{self.rows[-1]} rows after {self.context[-1]} tokens take {blocks} KV blocks of "
                f"{plan.num_blocks - 1}; lower --rows or --context, or raise --kv-cache-memory-bytes"
            )


def _axis(asked: Sequence[int] | None, default: Sequence[int], most: int) -> tuple[int, ...]:
    if asked:
        return tuple(sorted(set(asked)))
    return tuple(value for value in default if value <= most) or (default[0],)


def measure(
    engine: LLMEngine, grid: Grid, *, temperature: float = 1.0, clock: str = "wall", seed: int = 0
) -> dict[str, Any]:
    """Return the cost table of an idle engine: the median time of each step of the grid."""
    import numpy as np

    meter = _Meter(engine, temperature, CLOCKS[clock], np.random.default_rng(seed))
    seconds = {
        (rows, extra, context): value
        for context in grid.context
        for rows in grid.rows
        for extra, value in meter.row(rows, context, grid).items()
    }
    axes = [(rows, extra, context) for rows in grid.rows for extra in grid.extra for context in grid.context]
    plan = engine.plan
    return {
        "model": Path(plan.model.model).name,
        "device": f"{machine.cpu_name()}, {plan.num_threads} threads",
        "dtype": plan.dtype,
        "clock": clock,
        "repeats": grid.repeats,
        "rows": list(grid.rows),
        "extra": list(grid.extra),
        "context": list(grid.context),
        "seconds": [seconds[place] for place in axes],
        "submit_seconds": statistics.median(meter.submits),
    }


class _Meter:
    """Brings an engine to where the next step has a wanted shape, and times it."""

    def __init__(
        self, engine: LLMEngine, temperature: float, clock: Callable[[], float], rng: np.random.Generator
    ) -> None:
        self.engine = engine
        self.temperature = temperature
        self.clock = clock
        self.rng = rng
        self.vocab_size = engine.plan.spec.vocab_size
        self.requests = 0
        self.submits: list[float] = []  # seconds that taking a request in took

    def row(self, rows: int, context: int, grid: Grid) -> dict[int, float]:
        """Seconds by extra tokens: rows - 1 decode beside a prompt of 1 + extra tokens; 0: rows decode."""
        self.engine.core.reset_prefix_cache()
        prefix = self.tokens(context)
        self.submit([*prefix, 0], 1)
        self.drain()
        room = self.engine.plan.max_model_len - max(context, 1)
        decoding = [self.submit(self.tokens(max(context, 1)), room) for _ in range(rows - 1)]
        self.wait_for(set(decoding))
        times: dict[int, list[float]] = {extra: [] for extra in grid.extra}
        for _ in range(grid.repeats + 1):
            for extra in grid.extra[1:]:
                self.submit([*prefix, *self.tokens(1 + extra)], 1)  # its prefix is in the cache
                times[extra].append(self.time_step(rows + extra))
        # Without a prompt nobody comes or ends in the step: what that costs is no part of decoding.
        decoding.append(self.submit(self.tokens(max(context, 1)), room))
        self.wait_for({decoding[-1]})
        for _ in range(grid.repeats + 1):
            times[0].append(self.time_step(rows))
        for request in decoding:
            self.engine.abort_request(request)
        self.drain()
        # The first round brings code and memory to where later ones find them.
        return {extra: statistics.median(values[1:]) for extra, values in times.items()}

    def time_step(self, tokens: int) -> float:
        """The next step, which must be of so many tokens."""
        before = self.engine.core.stats()["scheduled_tokens"]
        start = self.clock()
        self.engine.step()
        seconds = self.clock() - start
        made = self.engine.core.stats()["scheduled_tokens"] - before
        if made != tokens:
            raise CommandError(
                f"a step of {tokens} tokens was wanted and one of {made} ran: give the engine more KV "
                "blocks and leave prefix caching and chunked prefill on"
            )
        return max(seconds, 1e-9)

    def submit(self, prompt: list[int], max_tokens: int) -> str:
        """Queue a request of exactly `max_tokens` tokens."""
        from octavo import SamplingParams

        self.requests += 1
        request_id = f"steps-{self.requests}"
        params = SamplingParams(
            temperature=self.temperature, max_tokens=max_tokens, ignore_eos=True, detokenize=False
        )
        start = self.clock()
        self.engine.add_request(request_id, {"prompt_token_ids": prompt}, params)
        self.submits.append(self.clock() - start)
        return request_id

    def tokens(self, number: int) -> list[int]:
        """Tokens that nobody has seen."""
        return random_tokens(self.rng, number, self.vocab_size)

    def wait_for(self, requests: set[str]) -> None:
        """Step until each has made a token."""
        for _ in range(_MOST_STEPS):
            if not requests:
                return
            requests -= {output.request_id for output in self.engine.step()}
        raise CommandError("the engine did not take all rows: raise --kv-cache-memory-bytes")

    def drain(self) -> None:
        """Step until nothing is left."""
        while self.engine.has_unfinished_requests():
            self.engine.step()


def add_arguments(parser: argparse.ArgumentParser, counts: Callable[[str], list[int]]) -> None:
    """The arguments besides the model's and the engine's."""
    parser.add_argument("--cost-model", metavar="FILE", required=True, help="write the cost model here")
    parser.add_argument("--rows", type=counts, metavar="N,N,...", help=f"rows of a step (default: {ROWS})")
    parser.add_argument(
        "--extra", type=counts, metavar="N,N,...", help=f"prompt tokens beside them (default: {EXTRA})"
    )
    parser.add_argument(
        "--context", type=counts, metavar="N,N,...", help=f"tokens before (default: {CONTEXT})"
    )
    parser.add_argument("--repeats", type=int, metavar="N", default=5, help="of each step (default: 5)")
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="wall", help="cpu: processor time, with --num-threads 1"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="X", default=1.0, help="0: greedy (default: 1.0)"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say more; an error with traceback")
