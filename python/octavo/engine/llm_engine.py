"""The engine in this process: requests in, steps, outputs out. One thread drives it.

A step is planned by the core, run by the runner and handed back to the core; what the core says happened
becomes text and outputs here. A step that fails ends the requests in it and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
import weakref
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any, Protocol

from octavo import core
from octavo.engine.core_params import ParamsTranslator
from octavo.engine.inputs import InputProcessor, Prompt
from octavo.engine.logprobs import DecodedTokens, LogprobRows
from octavo.engine.metrics import EngineMetrics, Metric
from octavo.engine.pipeline import LoopedSteps, Outcome, Pipeline, Runner, Steps
from octavo.engine.request import Request, Sample
from octavo.media.audio import AudioInput
from octavo.media.item import MediaItem
from octavo.outputs import RequestOutput
from octavo.plan import Plan
from octavo.runner.batch import LogprobBatch, PromptLogprobs
from octavo.sampling_params import MAX_LOGPROBS, SamplingParams
from octavo.text.tokenizer import Tokenizer

logger = logging.getLogger("octavo")

# What the core's `finish` column says.
_STOP, _LENGTH, _ABORT, _ERROR = 1, 2, 3, 4
_REASONS = {_STOP: "stop", _LENGTH: "length", _ABORT: "abort", _ERROR: "error"}
_BAD_LOGITS = "no token could be sampled: the logits hold NaN, or every token is forbidden"
_MAX_REQUEST_ID_CHARS = 256
PAUSE_MODES = ("new_requests", "all")


class EventSink(Protocol):
    """Who is told what enters and leaves the prefix cache: octavo.kv_events' publisher."""

    def attach(self, flush: Callable[[], None]) -> contextlib.AbstractContextManager[object]:
        """Gives the lock under which `flush` is called, by another thread, while the engine rests."""

    def publish(
        self,
        changes: Sequence[dict[str, Any]],
        content: Callable[[], Sequence[dict[str, Any]]],
        *,
        lost: bool = False,
    ) -> None:
        """Takes what changed; `content` gives the whole cache, `lost` says that changes are missing."""

    def close(self) -> None:
        """Sends what waits."""


class LLMEngine:
    """Requests in, outputs out, one step at a time.

    `tokenizer` None: token ids in, token ids out. Not thread-safe.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        core_engine: core.Engine,
        runner: Runner,
        tokenizer: Tokenizer | None,
        max_logprobs: int = MAX_LOGPROBS,
        events: EventSink | None = None,
        items: MutableMapping[int, Sequence[MediaItem]] | None = None,
        audio: AudioInput | None = None,
        loop: core.StepLoop | None = None,
    ) -> None:
        """`items`: where the runner looks for what its encoder takes, by the core's id of the request;
        `loop`: steps the core on a thread of its own, else the runner is driven from the caller's.
        """
        self.plan = plan
        self._events = events
        self._lost_events = 0
        self.core = core_engine
        self.runner = runner
        self._steps: Steps = Pipeline(core_engine, runner)
        if loop is not None:
            self._steps = LoopedSteps(core_engine, loop, runner)
        self.tokenizer = tokenizer
        spec = plan.spec
        start = spec.start if audio is not None else None
        self.inputs = InputProcessor(
            tokenizer,
            max_model_len=plan.max_model_len,
            vocab_size=spec.vocab_size,
            start=start,
            audio=audio,
        )
        self._params = ParamsTranslator(
            tokenizer,
            vocab_size=spec.vocab_size,
            max_model_len=plan.max_model_len,
            eos_token_ids=tuple(spec.eos_token_ids),
            max_logprobs=max_logprobs,
            seed=plan.model.seed,
            start=start,
        )
        self._items: MutableMapping[int, Sequence[MediaItem]] = {} if items is None else items
        self._requests: dict[str, Request] = {}
        self._samples: dict[int, Sample] = {}
        # Outputs that exist before any step ran: of requests aborted meanwhile.
        self._ready: list[RequestOutput] = []
        self._decoded = DecodedTokens(tokenizer)
        self._metrics = EngineMetrics(str(plan.model.model))
        # Last: from now on the publisher's thread may call.
        self._busy = contextlib.nullcontext() if events is None else events.attach(_flusher(self))

    def add_request(self, request_id: str, prompt: Any, params: SamplingParams, priority: int = 0) -> None:
        """Queues a request. ValueError (or TypeError) says what is wrong with it; nothing has changed then.

        `prompt`: a string, token ids, {"prompt": ...} or {"prompt_token_ids": ...}. Lower priorities run
        first.
        """
        params = self.checked_params(params)
        self.add_prepared(request_id, self.inputs.prepare([prompt], [params])[0], params, priority)

    def checked_params(self, params: SamplingParams) -> SamplingParams:
        """A validated copy: the caller may have changed a field, and may change one later."""
        if not isinstance(params, SamplingParams):
            raise TypeError(f"params must be SamplingParams, not {type(params).__name__}")
        params = copy.copy(params)
        params.validate()
        return params

    def add_prepared(
        self, request_id: str, prompt: Prompt, params: SamplingParams, priority: int = 0
    ) -> None:
        """As `add_request`, for a prompt and parameters that were checked before."""
        if not isinstance(request_id, str) or not 0 < len(request_id) <= _MAX_REQUEST_ID_CHARS:
            raise ValueError(f"request_id must be a string of 1 to {_MAX_REQUEST_ID_CHARS} characters")
        if request_id in self._requests:
            raise ValueError(f"request_id={request_id!r} is in use; give each running request its own")
        if isinstance(priority, bool) or not isinstance(priority, int) or not -(2**31) <= priority < 2**31:
            raise ValueError(f"priority={priority!r} is not valid: use an integer that fits 32 bits")
        request = Request(request_id, prompt, params, self.tokenizer)
        retention, items = _retention(prompt), [_encoder_item(item) for item in prompt.items]
        added: list[int] = []
        try:
            for sample in request.samples:
                native = self._params.translate(params, prompt=request.prompt_token_ids, index=sample.index)
                core_id = self.core.add_request(
                    prompt.token_ids, native, priority, prompt.cache_salt, retention, items
                )
                added.append(core_id)
                sample.core_id = core_id
        except BaseException:
            for core_id in added:
                with contextlib.suppress(KeyError):
                    self.core.abort(core_id)
            raise
        self._requests[request_id] = request
        self._samples.update((sample.core_id, sample) for sample in request.samples)
        if prompt.items:
            self._items.update((sample.core_id, prompt.items) for sample in request.samples)

    def step(self) -> list[RequestOutput]:
        """Finishes one step; returns the outputs of every request it changed: none when nothing was to do."""
        if self._events is None:
            return self._step()
        with self._busy:
            try:
                return self._step()
            finally:
                self.publish_events()

    def publish_events(self) -> None:
        """Hands over what changed in the prefix cache since the last call; steps do so themselves."""
        events = self._events
        if events is None:
            return
        lost = self.core.dropped_events
        known, self._lost_events = self._lost_events, -1  # what fails below has lost what it took
        try:
            events.publish(self.core.take_events(), self.core.cached_content, lost=lost > known)
            self._lost_events = lost
        except MemoryError as error:  # outputs of a step are worth more than events, which start afresh
            logger.warning("KV events were dropped: %s; subscribers start afresh", error or "out of memory")

    def shutdown(self) -> None:
        """Aborts what runs and closes what the engine has open to the outside. It can be called twice."""
        self.abort_request(self.unfinished_request_ids())
        if self._events is not None:
            with self._busy:
                self.publish_events()
            self._events.close()
            self._events = None

    def _step(self) -> list[RequestOutput]:
        ready, self._ready = self._ready, []
        try:
            outcome = self._steps.next()
            if outcome is None:
                self._check_idle(ready)
            else:
                ready += self._take_outcome(outcome)
            # Nobody waits for what is left, but the core does.
            while not self._samples and (outcome := self._steps.rest()) is not None:
                ready += self._take_outcome(outcome)
        except BaseException:
            # Ctrl-C inside a step: its tokens are lost, so its requests end; the engine can go on.
            failed = self._steps.fail()
            self._ready = ready + ([] if failed is None else self._take_outcome(failed))
            raise
        return ready

    def _take_outcome(self, outcome: Outcome) -> list[RequestOutput]:
        result = outcome.result
        if outcome.changes is None:
            return []
        if outcome.failure is not None:
            return self._take(outcome.changes, failure=outcome.failure)
        if result is not None and result.prompt_logprobs is not None:
            self._take_prompt_logprobs(result.prompt_logprobs)
        return self._take(outcome.changes, logprobs=None if result is None else result.logprobs)

    def _check_idle(self, ready: list[RequestOutput]) -> None:
        if self._samples and not ready and self.paused is not None:
            raise RuntimeError(
                f"the engine is paused (mode={self.paused!r}) and {len(self._requests)} requests wait: "
                "call resume(), or abort them"
            )
        if self._samples and not ready:
            raise RuntimeError(
                f"{len(self._requests)} requests wait and none can run ({self.core.num_waiting} waiting, "
                f"{self.core.num_running} running); this is a defect of the scheduler, please report it"
            )

    def _take(
        self, changes: Any, *, logprobs: LogprobBatch | None = None, failure: str = _BAD_LOGITS
    ) -> list[RequestOutput]:
        """The outputs for what the core says happened to its requests."""
        now = time.monotonic()
        rows = LogprobRows(logprobs) if logprobs is not None else None
        news: dict[Request, list[Sample]] = {}
        for core_id, token, row, stop_token, cached, finish in zip(*_fields(changes)):
            sample = self._samples.get(core_id)
            if sample is None:
                continue
            request = sample.request
            if request.num_cached_tokens is None:
                request.num_cached_tokens = cached
            stop_string = None
            hidden = finish == _STOP and not request.params.include_stop_str_in_output
            if token >= 0:
                stop_string = sample.append(token, now, hidden=hidden)
                if rows is not None and request.params.logprobs is not None:
                    self._add_logprobs(sample, rows, row, token)
            if finish or stop_string is not None or not request.final_only:
                changed = news.setdefault(request, [])
                if not changed or changed[-1] is not sample:  # one step may yield it several tokens
                    changed.append(sample)
            if stop_string is not None:
                if not finish:
                    # Later tokens of the same step may have ended it already.
                    with contextlib.suppress(KeyError):
                        self.core.stop(core_id)
                self._end(sample, "stop", stop_string)
            elif finish:
                stop_reason = failure if finish == _ERROR else stop_token if stop_token >= 0 else None
                self._end(sample, _REASONS[finish], stop_reason, hide_last=hidden and token >= 0)
        return self._outputs(news, now)

    def _add_logprobs(self, sample: Sample, rows: LogprobRows, row: int, token: int) -> None:
        params = sample.request.params
        k = self.plan.spec.vocab_size if params.logprobs == -1 else params.logprobs or 0
        position = rows.position(row, k, self._decoded if params.detokenize else None)
        sample.add_logprobs(position, token)

    def _end(
        self, sample: Sample, reason: str, stop_reason: int | str | None, *, hide_last: bool = False
    ) -> None:
        sample.finish(reason, stop_reason, hide_last=hide_last)
        del self._samples[sample.core_id]
        self._items.pop(sample.core_id, None)
        sample.request.unfinished -= 1

    def _outputs(self, news: dict[Request, list[Sample]], now: float) -> list[RequestOutput]:
        outputs = []
        for request, samples in news.items():
            request.count_tokens()
            if request.finished:
                request.metrics.finished_time = time.time()
                self._metrics.observe(request, now)
                del self._requests[request.request_id]
            output = request.output(samples)
            if output is not None:
                outputs.append(output)
        return outputs

    def _take_prompt_logprobs(self, scores: PromptLogprobs) -> None:
        rows = LogprobRows(scores.logprobs)
        parts = (scores.request.tolist(), scores.position.tolist(), scores.top.tolist())
        for row, (core_id, position, top) in enumerate(zip(*parts)):
            sample = self._samples.get(core_id)
            if sample is not None and sample.request.prompt_logprobs is not None:
                decoded = self._decoded if sample.request.params.detokenize else None
                sample.request.prompt_logprobs[position] = rows.position(row, top, decoded)

    def abort_request(self, request_ids: str | Iterable[str]) -> None:
        """Ends requests now and frees their blocks; unknown or finished ids are ignored.

        The next `step` returns their last output, with finish_reason "abort".
        """
        now = time.monotonic()
        for request_id in [request_ids] if isinstance(request_ids, str) else list(request_ids):
            request = self._requests.get(request_id)
            if request is None:
                continue
            ended = [sample for sample in request.samples if sample.finish_reason is None]
            with self._busy:
                for sample in ended:
                    # The core may have ended it in a step whose outputs nobody has taken yet.
                    with contextlib.suppress(KeyError):
                        self.core.abort(sample.core_id)
                    self._end(sample, "abort", None)
            self._ready += self._outputs({request: ended}, now)

    def take_ready(self, request_ids: Iterable[str]) -> list[RequestOutput]:
        """Removes and returns the outputs of these requests that the next `step` would return."""
        wanted = set(request_ids)
        taken = [output for output in self._ready if output.request_id in wanted]
        self._ready = [output for output in self._ready if output.request_id not in wanted]
        return taken

    def pause(self, mode: str = "all") -> None:
        """Holds requests back until `resume`; none ends by it, and more may be added or aborted.

        "all": nothing runs. "new_requests": what has started goes on to its end. `step` raises RuntimeError
        when only held requests are left, so that a loop over has_unfinished_requests() cannot spin.
        """
        if mode not in PAUSE_MODES:
            raise ValueError(f"mode={mode!r} is not valid: use one of {', '.join(PAUSE_MODES)}")
        self.core.set_pause(mode)

    def resume(self) -> None:
        """Ends a pause; does nothing without one."""
        self.core.set_pause("none")

    @property
    def paused(self) -> str | None:
        """The mode of the pause; None without one."""
        mode = self.core.pause
        return None if mode == "none" else mode

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has something to do or to return."""
        return bool(self._samples or self._ready)

    def get_num_unfinished_requests(self) -> int:
        """Requests that were added and have not ended."""
        return len(self._requests)

    def unfinished_request_ids(self) -> Sequence[str]:
        """Ids of the requests that were added and have not ended."""
        return list(self._requests)

    def get_metrics(self) -> list[Metric]:
        """Every metric as it is now."""
        return self._metrics.snapshot(self.core.stats(), self.core.host_tier_stats())

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached prefixes; False, and no change, while requests hold blocks."""
        with self._busy:
            done = bool(self.core.reset_prefix_cache())
            self.publish_events()
        return done


def _flusher(engine: LLMEngine) -> Callable[[], None]:
    """Publishes for an engine that rests, without keeping it alive."""
    known = weakref.ref(engine)

    def flush() -> None:
        resting = known()
        if resting is not None:
            resting.publish_events()

    return flush


def _retention(prompt: Prompt) -> core.Retention | None:
    wish = prompt.kv_retention
    if wish is None:
        return None
    return core.Retention(
        wish.spans(len(prompt.token_ids)),
        decode_priority=wish.decode_priority,
        decode_duration_ms=wish.decode_duration_ms or 0,
    )


def _encoder_item(item: MediaItem) -> core.EncoderItem:
    return core.EncoderItem(item.hash, start=0, length=0, embeddings=item.embeddings, cross=item.cross)


def _fields(changes: Any) -> list[list[Any]]:
    """The columns of the core's outputs as lists: quicker to loop over than rows of a structured array."""
    return [
        changes[name].tolist()
        for name in ("request", "token", "sample", "stop_token", "cached_tokens", "finish")
    ]
