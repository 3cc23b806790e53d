"""One request driven to its end in the calling thread, with its timings, and stoppable by Ctrl-C."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from octavo.cli.errors import CommandError
from octavo.engine.interrupt import Interrupt

if TYPE_CHECKING:
    from octavo import LLM, SamplingParams

_serial = itertools.count()


@dataclass
class Answer:
    """What one request produced; times are seconds of `time.perf_counter`."""

    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    interrupted: bool = False
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None
    last: float | None = None

    @property
    def ttft(self) -> float:
        """Seconds from submission to the first token; 0 without one."""
        return self.first - self.started if self.first is not None else 0.0

    @property
    def tokens_per_second(self) -> float:
        """The decode rate after the first token; 0 where there was no second token."""
        if self.first is None or self.last is None or self.last <= self.first:
            return 0.0
        return (self.output_tokens - 1) / (self.last - self.first)

    def summary(self) -> str:
        """One line: `TTFT 12 ms · 184 tok/s · 37 tokens`."""
        parts = [f"TTFT {self.ttft * 1e3:.0f} ms"]
        if self.tokens_per_second:
            parts.append(f"{self.tokens_per_second:.0f} tok/s")
        parts.append(f"{self.output_tokens} tokens")
        if self.cached_tokens:
            parts.append(f"{self.cached_tokens} of {self.prompt_tokens} prompt tokens cached")
        if self.interrupted:
            parts.append("stopped")
        elif self.finish_reason == "length":
            parts.append("cut at the length limit")
        return " · ".join(parts)


def stream(llm: LLM, prompt: Any, params: SamplingParams, answer: Answer) -> Iterator[str]:
    """Yields the new text of each step and fills `answer`; Ctrl-C ends it early with `answer.interrupted`.

    `params.output_kind` must be DELTA. Raises ValueError if the engine refuses the request.
    """
    engine = llm.llm_engine
    request_id = f"cli-{next(_serial)}"
    with Interrupt() as interrupt:
        answer.started = time.perf_counter()
        engine.add_request(request_id, prompt, params)
        try:
            while engine.has_unfinished_requests() and not interrupt.requested:
                for output in engine.step():
                    answer.prompt_tokens = len(output.prompt_token_ids or ())
                    answer.cached_tokens = output.num_cached_tokens or 0
                    yield record(answer, output.outputs[0])
        finally:
            answer.interrupted = interrupt.requested
            engine.abort_request([request_id])
            while engine.has_unfinished_requests():
                engine.step()


def record(answer: Answer, completion: Any) -> str:
    """Adds a step's output to the answer and returns its text. Raises CommandError if the request failed."""
    if completion.token_ids:
        answer.last = time.perf_counter()
        answer.first = answer.first or answer.last
    answer.output_tokens += len(completion.token_ids)
    answer.text += completion.text
    answer.finish_reason = completion.finish_reason
    if completion.finish_reason == "error":
        raise CommandError(f"the request failed: {completion.stop_reason}")
    return str(completion.text)


def printable(text: str) -> str:
    """The text without control characters, so that a model cannot steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f"))
