"""A request in the engine: its n samples, what was generated, and the outputs made from it."""

from __future__ import annotations

import time
from collections.abc import Iterable

from octavo.engine.inputs import Prompt
from octavo.outputs import (
    CompletionOutput,
    LogprobsOnePosition,
    PromptLogprobs,
    RequestMetrics,
    RequestOutput,
)
from octavo.sampling_params import RequestOutputKind, SamplingParams
from octavo.text.detokenizer import Detokenizer
from octavo.text.tokenizer import Tokenizer


class Sample:
    """One of a request's n outputs, growing."""

    __slots__ = (
        "_given",
        "core_id",
        "cumulative_logprob",
        "detokenizer",
        "finish_reason",
        "index",
        "late",
        "logprobs",
        "request",
        "stop_reason",
        "token_ids",
    )

    def __init__(self, request: Request, index: int, detokenizer: Detokenizer | None, *, late: bool) -> None:
        self.request = request
        self.index = index
        self.core_id = -1
        self.token_ids: list[int] = []
        self.detokenizer = detokenizer
        # Text that nobody looks at before the end is made at the end.
        self.late = late
        self.logprobs: list[LogprobsOnePosition] | None = None
        self.cumulative_logprob: float | None = None
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self._given = 0

    def append(self, token_id: int, now: float, *, hidden: bool) -> str | None:
        """Adds a token; `hidden`: not its text. Returns the stop string that it completed, or None."""
        self.token_ids.append(token_id)
        metrics = self.request.metrics
        metrics.last_token_ts = now
        if metrics.first_token_ts is None:
            metrics.first_token_ts = now
        if self.late or hidden or self.detokenizer is None:
            return None
        self.detokenizer.push(token_id)
        return self.detokenizer.stop_hit

    def add_logprobs(self, position: LogprobsOnePosition, token_id: int) -> None:
        """Adds the log-probabilities of the newest token."""
        if self.logprobs is None:
            self.logprobs, self.cumulative_logprob = [], 0.0
        self.logprobs.append(position)
        self.cumulative_logprob = (self.cumulative_logprob or 0.0) + position[token_id].logprob

    def finish(self, reason: str, stop_reason: int | str | None, *, hide_last: bool = False) -> None:
        """Ends the output: text held back is given out."""
        self.finish_reason = reason
        self.stop_reason = stop_reason
        if self.detokenizer is None:
            return
        if self.late:
            shown = self.token_ids[:-1] if hide_last else self.token_ids
            for token_id in shown:
                self.detokenizer.push(token_id)
        self.detokenizer.finish()
        if self.detokenizer.stop_hit is not None and stop_reason is None and reason == "length":
            self.finish_reason, self.stop_reason = "stop", self.detokenizer.stop_hit

    def output(self, *, delta: bool) -> CompletionOutput:
        """Everything so far, or what is new since the last call."""
        text = ""
        if self.detokenizer is not None:
            text = self.detokenizer.take() if delta else self.detokenizer.text
        first = self._given if delta else 0
        self._given = len(self.token_ids)
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=self.token_ids[first:],
            cumulative_logprob=self.cumulative_logprob,
            logprobs=self.logprobs[first:] if self.logprobs is not None else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )


class Request:
    """A prompt, its parameters, and n samples."""

    __slots__ = (
        "_given_prompt_logprobs",
        "final_only",
        "metrics",
        "num_cached_tokens",
        "params",
        "prompt",
        "prompt_logprobs",
        "prompt_token_ids",
        "request_id",
        "samples",
        "unfinished",
    )

    def __init__(
        self, request_id: str, prompt: Prompt, params: SamplingParams, tokenizer: Tokenizer | None
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.prompt_token_ids: list[int] = prompt.token_ids.tolist()
        self.params = params
        self.metrics = RequestMetrics(arrival_time=time.time(), queued_ts=time.monotonic())
        self.num_cached_tokens: int | None = None
        self.prompt_logprobs: PromptLogprobs | None = None
        if params.prompt_logprobs is not None:
            self.prompt_logprobs = [None] * len(prompt.token_ids)
        self._given_prompt_logprobs = False
        self.final_only = params.output_kind is RequestOutputKind.FINAL_ONLY
        late = self.final_only and not params.stop
        self.samples = [Sample(self, i, self._detokenizer(tokenizer), late=late) for i in range(params.n)]
        self.unfinished = params.n

    def _detokenizer(self, tokenizer: Tokenizer | None) -> Detokenizer | None:
        params = self.params
        if tokenizer is None or not params.detokenize:
            return None
        return Detokenizer(
            tokenizer,
            self.prompt_token_ids,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
            stop=params.stop or (),
            include_stop_str_in_output=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
        )

    @property
    def finished(self) -> bool:
        """Whether every sample has ended."""
        return not self.unfinished

    def count_tokens(self) -> None:
        """Brings the metrics up to date with the samples."""
        self.metrics.num_generation_tokens = sum(len(sample.token_ids) for sample in self.samples)

    def output(self, news: Iterable[Sample]) -> RequestOutput | None:
        """The output after a step that changed the samples `news`; None while there is nothing to show."""
        if self.final_only:
            if not self.finished:
                return None
            news = self.samples
        delta = self.params.output_kind is RequestOutputKind.DELTA
        prompt_logprobs = None if delta and self._given_prompt_logprobs else self.prompt_logprobs
        self._given_prompt_logprobs = True
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt.text,
            prompt_token_ids=self.prompt_token_ids,
            prompt_logprobs=prompt_logprobs,
            outputs=[sample.output(delta=delta) for sample in news],
            finished=self.finished,
            metrics=self.metrics,
            num_cached_tokens=self.num_cached_tokens,
        )
