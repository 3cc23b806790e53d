"""`LLM`: a model in this process, for whole jobs at once."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from octavo import config, core
from octavo.engine.inputs import Prompt, as_prompt_list
from octavo.engine.interrupt import Interrupt
from octavo.engine.llm_engine import EventSink, LLMEngine
from octavo.engine.metrics import Metric
from octavo.engine.options import split_options
from octavo.engine.progress import ProgressBar
from octavo.errors import invalid
from octavo.hf.reader import read_json
from octavo.media.audio import AudioInput
from octavo.media.item import MediaItem
from octavo.media.log_mel import load_log_mel
from octavo.models import registry
from octavo.outputs import RequestOutput
from octavo.plan import Plan, resolve
from octavo.prompts import PromptType, TokensPrompt
from octavo.runner.device_runner import DeviceRunner
from octavo.runner.runner import ModelRunner
from octavo.runner.shapes import core_options
from octavo.sampling_params import MAX_LOGPROBS, RequestOutputKind, SamplingParams
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from octavo.weights.kv_scales import load_kv_scales
from octavo.weights.loader import load_weights

if TYPE_CHECKING:
    from octavo.engine.options import LLMOptions, Unpack

# generation_config.json's names of what a model's authors recommend, and SamplingParams' names.
_RECOMMENDED = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


class LLM:
    """A model that answers batches of prompts.

    `model` is a folder with config.json, safetensors and tokenizer.json, or "tiny". The keyword arguments
    are those of octavo/config.py, with vLLM's names; an unknown one raises TypeError with the nearest name.
    Everything is loaded and all memory taken here; what is wrong with the folder or the options raises
    before that. One thread at a time may use an LLM.
    """

    def __init__(self, model: str | os.PathLike[str], **options: Unpack[LLMOptions]) -> None:
        configured, own = split_options(dict(options))
        plan = resolve(*config.from_options({"model": model, **configured}))
        # The tokenizer first: it is read in milliseconds, and what is wrong with it should not wait for
        # weights.
        tokenizer = None if own.get("skip_tokenizer_init") else _tokenizer_of(plan)
        max_logprobs = own.get("max_logprobs", MAX_LOGPROBS)
        self.llm_engine = make_engine(plan, tokenizer, max_logprobs=max_logprobs)
        self._serial = itertools.count()

    def generate(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """One finished RequestOutput for each prompt, in the prompts' order.

        `prompts`: a string, {"prompt": ...}, {"prompt_token_ids": [...]}, token ids, or a list of any of
        these; a model that hears takes "multi_modal_data": {"audio": (samples, sampling_rate)} beside or
        without them. `sampling_params`: one for all, or one for each; None takes the model's recommendation.
        `priority`: lower runs first, under scheduling_policy="priority". Raises ValueError or TypeError for
        bad input before anything runs. A request that fails while running has finish_reason "error"; the
        others are not affected. Ctrl-C ends every request of this call and leaves the LLM usable.
        """
        listed = as_prompt_list(prompts)
        params = self._params_for(len(listed), sampling_params)
        priorities = _priorities(len(listed), priority)
        prepared = self.llm_engine.inputs.prepare(listed, params)
        return self._run(prepared, params, priorities, use_tqdm=use_tqdm)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        use_tqdm: bool = True,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """As `generate`, for one conversation or a list of them, through the model's chat template.

        Raises ValueError with the template's own words where it refuses the messages.
        """
        many = isinstance(messages, Sequence) and bool(messages) and isinstance(messages[0], (list, tuple))
        conversations: Sequence[Any] = messages if many else [messages]
        extra = dict(chat_template_kwargs or {})
        # What decides the prompt's form is not the template's business.
        for name in ("tokenize", "add_generation_prompt", "continue_final_message", "chat_template"):
            if name in extra:
                raise invalid("chat_template_kwargs", {name: extra[name]}, f"pass {name} to chat() itself")
        tokenizer = self.get_tokenizer()
        texts = [
            str(
                tokenizer.apply_chat_template(
                    conversation,
                    chat_template=chat_template,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    tools=tools,
                    tokenize=False,
                    **extra,
                )
            )
            for conversation in conversations
        ]
        # The template writes BOS itself where the model wants it.
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        prompts = [TokensPrompt(prompt=text, prompt_token_ids=ids) for text, ids in zip(texts, encoded)]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, priority=priority)

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises ValueError where the LLM was made without one."""
        if self.llm_engine.tokenizer is None:
            raise ValueError("this LLM was made with skip_tokenizer_init=True and has no tokenizer")
        return self.llm_engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """A fresh SamplingParams with what generation_config.json recommends.

        A model of speech writes down what it heard: greedily and to the end, unless the file says otherwise.
        """
        path = self.llm_engine.plan.folder / "generation_config.json"
        values = read_json(path) or {}
        found = {
            ours: values[theirs] for theirs, ours in _RECOMMENDED.items() if values.get(theirs) is not None
        }
        if values.get("do_sample") is False:
            found["temperature"] = 0.0
        if self.llm_engine.plan.spec.encoder is not None:
            found = {"temperature": 0.0, "max_tokens": None, **found}
        try:
            return SamplingParams(**found)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; correct the file or pass sampling_params") from error

    def get_metrics(self) -> list[Metric]:
        """Counters, gauges and histograms of everything this LLM has done."""
        return self.llm_engine.get_metrics()

    def reset_prefix_cache(self) -> bool:
        """Forgets all cached prefixes; False where requests still hold blocks."""
        return self.llm_engine.reset_prefix_cache()

    def shutdown(self) -> None:
        """Ends what runs and closes what is open to the outside, such as the publisher of KV events."""
        self.llm_engine.shutdown()

    def _params_for(self, count: int, given: Any) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        if isinstance(given, SamplingParams):
            given = [self.llm_engine.checked_params(given)] * count
        elif isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
            if len(given) != count:
                raise invalid(
                    "sampling_params",
                    f"{len(given)} entries",
                    f"give one, or one for each of {count} prompts",
                )
            given = [self.llm_engine.checked_params(params) for params in given]
        else:
            raise TypeError(
                f"sampling_params must be SamplingParams or a list of them, not {type(given).__name__}"
            )
        for params in given:
            # These are copies: only the finished outputs are wanted here, whatever the caller streams
            # elsewhere.
            params.output_kind = RequestOutputKind.FINAL_ONLY
        return list(given)

    def _run(
        self, prompts: list[Prompt], params: list[SamplingParams], priorities: list[int], *, use_tqdm: bool
    ) -> list[RequestOutput]:
        engine = self.llm_engine
        if engine.paused is not None:
            raise RuntimeError(f"the engine is paused (mode={engine.paused!r}): call llm.llm_engine.resume()")
        if engine.has_unfinished_requests():
            count = engine.get_num_unfinished_requests()
            raise RuntimeError(
                f"{count} requests of llm_engine.add_request are unfinished; step or abort them first"
            )
        ids = [str(next(self._serial)) for _ in prompts]
        finished: dict[str, RequestOutput] = {}
        progress = ProgressBar(len(prompts), enabled=use_tqdm)
        with _interruptible() as interrupt:
            try:
                for request in zip(ids, prompts, params, priorities):
                    engine.add_prepared(*request)
                while len(finished) < len(ids):
                    outputs = engine.step()
                    finished.update((output.request_id, output) for output in outputs)
                    progress.update(requests=len(outputs), tokens=sum(_tokens(output) for output in outputs))
                    if interrupt is not None and interrupt.requested:
                        raise KeyboardInterrupt
            except BaseException:
                engine.abort_request(ids)
                engine.take_ready(ids)
                raise
            finally:
                progress.close()
        return [finished[request_id] for request_id in ids]


def make_engine(plan: Plan, tokenizer: Tokenizer | None, *, max_logprobs: int = MAX_LOGPROBS) -> LLMEngine:
    """Loads the plan's model and takes its memory."""
    encoder = plan.spec.encoder
    # Before the weights, as it is read in milliseconds too.
    audio = None if encoder is None else AudioInput(load_log_mel(plan.folder, encoder), encoder.length)
    core_engine = core.Engine(core.EngineConfig(**plan.engine_options(), **core_options(plan)))
    model = registry.build(plan.spec, plan.device, batch_invariant=plan.batch_invariant)
    load_weights(model, plan.folder, plan.spec, load_format=plan.load.load_format, seed=plan.model.seed)
    stored = plan.kv_dtype == "fp8" and plan.load.load_format != "dummy"
    scales = load_kv_scales(model, plan.folder, plan.spec) if stored else {}
    items: dict[int, Sequence[MediaItem]] = {}
    runner: DeviceRunner | ModelRunner
    if plan.device == "cuda":
        runner = DeviceRunner(plan, model, core_engine, items, scales)
    else:
        runner = ModelRunner(plan, model, core_engine, items, scales)
    if plan.cache.offloading_bytes:
        try:
            runner.add_host_tier(core_engine, plan.cache.offloading_bytes)
        except MemoryError as error:
            raise invalid("kv_offloading_size", plan.cache.kv_offloading_size, str(error)) from error
    return LLMEngine(
        plan,
        core_engine=core_engine,
        runner=runner,
        tokenizer=tokenizer,
        max_logprobs=max_logprobs,
        events=_publisher(plan),
        items=items,
        audio=audio,
        loop=_loop(plan, core_engine, runner),
    )


def _loop(plan: Plan, engine: core.Engine, runner: DeviceRunner | ModelRunner) -> core.StepLoop | None:
    """The loop that launches captured steps; None where Python has a part in every step.

    A host tier's copies are asked for as a step is planned, and events have to be taken step by step.
    """
    if plan.cache.offloading_bytes or plan.cache.kv_events.enabled or isinstance(runner, ModelRunner):
        return None
    steps = runner.graph_steps
    return None if steps is None else core.StepLoop(engine, steps, runner.depth)


def _publisher(plan: Plan) -> EventSink | None:
    if not plan.cache.kv_events.enabled:
        return None
    from octavo.kv_events import wire  # the extra's packages, needed by nobody else
    from octavo.kv_events.publisher import KvEventPublisher, make_names

    groups = [wire.GroupInfo(wire.KINDS[group.kind], group.window or None) for group in plan.footprint.groups]
    events = plan.cache.kv_events
    algorithm, unit = plan.cache.prefix_caching_hash_algo, plan.footprint.block_size  # of every group
    names = make_names(algorithm, unit, as_integers=events.int_block_hashes)
    return KvEventPublisher(events, groups, names=names)


def _tokenizer_of(plan: Plan) -> Tokenizer:
    source = plan.model.tokenizer
    folder = plan.folder if source is None else config.model_folder(source)
    try:
        return load_tokenizer(folder, plan.model.tokenizer_mode)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; to work with token ids alone, pass skip_tokenizer_init=True"
        ) from error


def _priorities(count: int, given: int | Sequence[int] | None) -> list[int]:
    if given is None:
        return [0] * count
    if isinstance(given, Sequence):
        if len(given) != count:
            raise invalid(
                "priority", f"{len(given)} entries", f"give one, or one for each of {count} prompts"
            )
        return list(given)
    return [given] * count


def _tokens(output: RequestOutput) -> int:
    return sum(len(completion.token_ids) for completion in output.outputs)


def _interruptible() -> AbstractContextManager[Interrupt | None]:
    # Only the main thread gets signals, and a program that handles Ctrl-C itself keeps its handler.
    own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return Interrupt() if own and threading.current_thread() is threading.main_thread() else nullcontext()
