"""What the engine gives back: a RequestOutput for a request, a CompletionOutput for each of its n samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Logprob:
    """The log-probability of one token, of the raw logits' softmax."""

    logprob: float
    rank: int | None = None  # 1 is the likeliest token of the vocabulary
    decoded_token: str | None = None


# For each position: token id to Logprob, the sampled (or prompt) token first.
LogprobsOnePosition = dict[int, Logprob]
SampleLogprobs = list[LogprobsOnePosition]
PromptLogprobs = list["LogprobsOnePosition | None"]  # None for the first token, which nothing predicts


@dataclass(slots=True)
class CompletionOutput:
    """One sample of a request.

    `finish_reason` is None while it grows, then "stop", "length", "abort" or "error". `stop_reason` is the
    stop string or the stop token id that ended it; None for the end-of-sequence token; for an error, what
    happened.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None = None
    logprobs: SampleLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """Times of a request in seconds: `arrival_time` of the wall clock, the others of a monotonic one."""

    arrival_time: float
    queued_ts: float
    first_token_ts: float | None = None
    last_token_ts: float | None = None
    finished_time: float | None = None  # of the wall clock
    num_generation_tokens: int = 0

    @property
    def first_token_latency(self) -> float | None:
        """Seconds from arrival to the first token."""
        return None if self.first_token_ts is None else self.first_token_ts - self.queued_ts


@dataclass(slots=True)
class RequestOutput:
    """A request's outputs so far, or, by its output_kind, what is new in them."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: PromptLogprobs | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None = None
    num_cached_tokens: int | None = None
    # Filled by KV connectors, carried for programs that pass it on.
    kv_transfer_params: dict[str, Any] | None = field(default=None)
