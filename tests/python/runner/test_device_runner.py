"""The device's runner on CPU tensors: padding, upload, tokens that stay there. Only graphs need a device."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from octavo import SamplingParams, core
from octavo.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig
from octavo.engine.llm_engine import LLMEngine
from octavo.models.registry import build
from octavo.outputs import RequestOutput
from octavo.plan import resolve
from octavo.runner.device_runner import DeviceRunner
from octavo.runner.runner import ModelRunner
from octavo.weights.loader import load_weights

LIMITS = [
    {},
    {"max_num_batched_tokens": 16, "max_num_seqs": 4},
    {"blocks": 17, "max_num_seqs": 8},
]
LIMIT_IDS = ["unlimited", "chunks-of-16", "preempting"]


def engine_of(
    folder: Path,
    runner: Any,
    *,
    blocks: int = 400,
    length: int = 128,
    looped: bool = False,
    depth: int | None = None,
    sharing: dict[str, int] | None = None,
    **limits: Any,
) -> LLMEngine:
    """`looped`: stepped by a loop as deep as `depth`, or as the runner says; `sharing`: of the core."""
    plan = resolve(
        ModelConfig(model=folder, dtype="float32", max_model_len=length),
        cache=CacheConfig(num_gpu_blocks_override=blocks),
        scheduler=SchedulerConfig(**limits),
        device=DeviceConfig(device="cpu", num_threads=1),
    )
    engine = core.Engine(core.EngineConfig(**plan.engine_options(), **sharing or {}))
    model = build(plan.spec)
    load_weights(model, folder, plan.spec)
    made = runner(plan, model, engine)
    loop = core.StepLoop(engine, made.graph_steps, depth or made.depth) if looped else None
    return LLMEngine(plan, core_engine=engine, runner=made, tokenizer=None, loop=loop)


def run(engine: LLMEngine, prompts: list[list[int]], params: list[SamplingParams]) -> list[RequestOutput]:
    last: dict[str, RequestOutput] = {}
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params[i])
    while engine.has_unfinished_requests():
        last.update((output.request_id, output) for output in engine.step())
    assert engine.core.stats()["free_blocks"] == engine.core.stats()["total_blocks"]
    return [last[str(i)] for i in range(len(prompts))]


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("limits", LIMITS, ids=LIMIT_IDS)
@pytest.mark.parametrize(
    "name", ["llama", "qwen2-hybrid", "mixtral", "gpt-oss", "llama4", "deepseek-v2", "deepseek-v3", "bamba"]
)
def test_a_step_ahead_and_padded_it_gives_the_same_tokens(
    tiny_folder: Any, name: str, limits: dict[str, Any]
) -> None:
    if name == "bamba" and "blocks" in limits:
        limits = {**limits, "blocks": 11}  # a request takes fewer of them
    prompts = tiny_models.random_prompts(12, low=1, high=60, seed=21)
    params = [SamplingParams(temperature=0, max_tokens=5 + 3 * i, ignore_eos=True) for i in range(12)]
    expected = tokens(run(engine_of(tiny_folder(name), ModelRunner, **limits), prompts, params))
    engine = engine_of(tiny_folder(name), DeviceRunner, **limits)
    assert tokens(run(engine, prompts, params)) == expected
    assert tokens(run(engine, prompts, params)) == expected  # from the prefix cache
    if "blocks" in limits:
        assert engine.core.stats()["preemptions"] > 0


@pytest.mark.parametrize("runner", [ModelRunner, DeviceRunner])
@pytest.mark.parametrize("name", ["mistral-window", "bamba", "deepseek-v2"])
def test_the_null_block_is_zeros(
    tiny_folder: Any, monkeypatch: pytest.MonkeyPatch, name: str, runner: Any
) -> None:
    """Whatever the pool's memory held before, and after steps with padding and with blocks given back."""
    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    engine = engine_of(tiny_folder(name), runner, blocks=24)
    memory = engine.runner.pool.view(torch.uint8)
    assert memory[-1].eq(0xFF).all()
    prompts = tiny_models.random_prompts(5, low=50, high=90, seed=22)
    run(engine, prompts, [SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)] * len(prompts))
    assert not memory[0].any()


def poisoned(empty: Any) -> Any:
    """torch.empty, whose bytes are NaN."""

    def make(*size: Any, **options: Any) -> torch.Tensor:
        tensor: torch.Tensor = empty(*size, **options)
        if tensor.dtype == torch.uint8:
            tensor.fill_(0xFF)
        return tensor

    return make


def test_what_edits_logits_reaches_the_device(tiny_folder: Any) -> None:
    """Penalties and masks read memory by address: the runner brings it along."""
    kinds: list[dict[str, Any]] = [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.7, "frequency_penalty": 0.4, "temperature": 0.9, "seed": 2},
        {"logit_bias": {17: 5.0, 18: -100.0}},
        {"allowed_token_ids": list(range(100, 140))},
        {"min_tokens": 6, "stop_token_ids": list(range(100))},
        {"temperature": 1.0, "top_p": 0.7, "min_p": 0.02, "seed": 4},
        {},
    ]
    prompts = tiny_models.random_prompts(len(kinds), low=5, high=50, seed=22)
    params = [
        SamplingParams(**{"temperature": 0.0, "max_tokens": 20, "ignore_eos": True, **k}) for k in kinds
    ]
    expected = tokens(run(engine_of(tiny_folder("llama"), ModelRunner), prompts, params))
    assert tokens(run(engine_of(tiny_folder("llama"), DeviceRunner), prompts, params)) == expected


def test_log_probabilities_arrive_with_their_tokens(tiny_folder: Any) -> None:
    prompts = tiny_models.random_prompts(4, low=20, high=60, seed=23)
    plain = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    asked = dataclasses.replace(plain, logprobs=3, prompt_logprobs=2)
    params = [asked, plain, asked, dataclasses.replace(plain, temperature=1.0, seed=1, logprobs=0)]
    want = run(engine_of(tiny_folder("llama"), ModelRunner, max_num_batched_tokens=48), prompts, params)
    got = run(engine_of(tiny_folder("llama"), DeviceRunner, max_num_batched_tokens=48), prompts, params)
    assert tokens(got) == tokens(want)
    for a, b in zip(got, want):
        assert (a.outputs[0].logprobs is None) == (b.outputs[0].logprobs is None)
        for mine, theirs in zip(a.outputs[0].logprobs or [], b.outputs[0].logprobs or []):
            assert mine.keys() == theirs.keys()
            assert np.allclose([e.logprob for e in mine.values()], [e.logprob for e in theirs.values()])
        assert (a.prompt_logprobs is None) == (b.prompt_logprobs is None)
        assert len(a.prompt_logprobs or []) == len(b.prompt_logprobs or [])


def test_a_step_writes_only_its_own_blocks(tiny_folder: Any) -> None:
    """Padding has no place in the cache: what no request holds keeps its bytes."""
    engine = engine_of(tiny_folder("llama"), DeviceRunner, blocks=40)
    runner: Any = engine.runner
    runner.pool.fill_(7.0)
    prompts = tiny_models.random_prompts(3, low=20, high=30, seed=24)
    run(engine, prompts, [SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)] * 3)
    written = (runner.pool != 7.0).flatten(1).any(1).nonzero().flatten().tolist()
    assert 0 not in written
    assert len(written) <= 9


DRAFTS = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 2, "prompt_lookup_min": 1}


def repetitive(seed: int) -> list[list[int]]:
    """Prompts of which prompt lookup guesses something right."""
    parts = tiny_models.random_prompts(12, low=3, high=12, seed=seed)
    return [(part * 6)[: 30 + 2 * i] for i, part in enumerate(parts)]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("limits", LIMITS, ids=LIMIT_IDS)
@pytest.mark.parametrize("name", ["llama", "qwen2-hybrid"])
def test_drafts_change_no_token(tiny_folder: Any, name: str, limits: dict[str, Any], depth: int) -> None:
    prompts = repetitive(25)
    params = [SamplingParams(temperature=0, max_tokens=9 + 3 * i, ignore_eos=True) for i in range(12)]
    params[3] = SamplingParams(
        temperature=0.9, seed=3, max_tokens=30, repetition_penalty=1.2, ignore_eos=True
    )
    params[5] = SamplingParams(temperature=0, max_tokens=30, logprobs=2, ignore_eos=True)
    want = run(engine_of(tiny_folder(name), ModelRunner, **limits), prompts, params)
    engine = engine_of(tiny_folder(name), DeviceRunner, speculative_config=DRAFTS, **limits)
    runner: Any = engine.runner
    assert runner.depth == 1
    runner.depth = depth  # both are right; see DeviceRunner for why it is one
    for _ in range(2):
        got = run(engine, prompts, params)
        assert tokens(got) == tokens(want)
        assert [len(output.outputs[0].logprobs or []) for output in got] == [
            len(output.outputs[0].logprobs or []) for output in want
        ]
    stats = engine.core.stats()
    assert stats["draft_tokens"] > stats["accepted_tokens"] > 0
    if "blocks" in limits:
        assert stats["preemptions"] > 0


def test_steps_of_drafts_alone_have_shapes_of_their_own(tiny_folder: Any) -> None:
    """They sample at every token, and no row has more than its drafts and one."""
    engine = engine_of(tiny_folder("llama"), DeviceRunner, speculative_config=DRAFTS, max_num_seqs=4)
    runner: Any = engine.runner
    shapes, compute = [], runner._run
    runner._run = lambda shape: (shapes.append(shape), compute(shape))[1]
    params = [SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)] * 12
    run(engine, repetitive(26), params)
    drafted = [shape for shape in shapes if shape.queries == 5]
    assert drafted
    assert all(shape.samples == shape.tokens and shape.rows <= 4 for shape in drafted)
    assert len({shape for shape in shapes if shape.queries != 0}) <= 16
