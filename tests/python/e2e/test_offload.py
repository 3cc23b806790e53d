"""A host tier behind a pool that is too small: the same tokens, fewer of them computed twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
from e2e.truth import Truth

from octavo import LLM, SamplingParams


def counters(llm: LLM) -> dict[str, float]:
    values: dict[str, float] = {}
    for metric in llm.get_metrics():
        value = getattr(metric, "value", None)
        if value is not None and "finished_reason" not in metric.labels:
            values[metric.name.removeprefix("octavo:")] = value
    return values


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


def tokens_of(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen2-hybrid", "gemma3", "deepseek-v2"])
def test_a_working_set_larger_than_the_pool_is_computed_once(make_llm: Callable[..., LLM], name: str) -> None:
    prompts = tiny_models.random_prompts(10, low=120, high=160, seed=3)
    options = {"num_gpu_blocks_override": 50, "max_model_len": 192, "max_num_seqs": 2}
    params = greedy(4)
    alone, tiered = make_llm(name, **options), make_llm(name, **options, kv_offloading_size=0.25)
    wanted = tokens_of(alone.generate(prompts, params, use_tqdm=False))
    for _ in range(3):
        assert tokens_of(alone.generate(prompts, params, use_tqdm=False)) == wanted
    for _ in range(4):
        assert tokens_of(tiered.generate(prompts, params, use_tqdm=False)) == wanted
    without, counted = counters(alone), counters(tiered)
    total = sum(map(len, prompts))
    assert without["prompt_tokens"] > 3 * total
    assert counted["prompt_tokens"] < 1.6 * total
    assert counted["kv_offload_stored_blocks"] > 0
    assert counted["kv_offload_loaded_blocks"] > 0
    assert counted["external_prefix_cache_hits"] > 0


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3", "deepseek-v2"])
def test_what_a_preempted_request_computed_comes_back_from_the_tier(
    make_llm: Callable[..., LLM], truth: Callable[[str], Truth], name: str
) -> None:
    known = truth(name)
    options = {"num_gpu_blocks_override": 24, "max_model_len": 192, "max_num_seqs": 16}
    alone, tiered = make_llm(name, **options), make_llm(name, **options, kv_offloading_size=0.25)
    computed = []
    for llm in (alone, tiered):
        outputs = llm.generate(known.prompts[:24], greedy(64), use_tqdm=False)
        assert tokens_of(outputs) == known.tokens[:24]
        counted = counters(llm)
        assert counted["num_preemptions"] > 0
        computed.append(counted["prompt_tokens"])
    assert computed[1] < computed[0]
    assert counters(tiered)["kv_offload_loaded_blocks"] > 0


def test_a_tier_is_bounded(make_llm: Callable[..., LLM]) -> None:
    prompts = tiny_models.random_prompts(12, low=120, high=160, seed=4)
    options = {"num_gpu_blocks_override": 24, "max_model_len": 192, "max_num_seqs": 1}
    alone = make_llm(**options)
    wanted = tokens_of(alone.generate(prompts, greedy(4), use_tqdm=False))
    llm = make_llm(**options, kv_offloading_size=0.0005)  # 512 KiB: less than the prompts take
    for _ in range(3):
        assert tokens_of(llm.generate(prompts, greedy(4), use_tqdm=False)) == wanted
    stats = llm.llm_engine.core.host_tier_stats()
    assert stats["evicted_blocks"] > 0
    assert stats["capacity_bytes"] <= 0.0005 * 2**30
    assert counters(llm)["kv_offload_evicted_blocks"] == stats["evicted_blocks"]


def test_a_reset_forgets_the_tier_too(make_llm: Callable[..., LLM]) -> None:
    prompts = tiny_models.random_prompts(6, low=120, high=160, seed=5)
    llm = make_llm(num_gpu_blocks_override=24, max_model_len=192, kv_offloading_size=0.25)
    llm.generate(prompts, greedy(2), use_tqdm=False)
    assert llm.llm_engine.core.host_tier_stats()["blocks"] > 0
    assert llm.llm_engine.reset_prefix_cache()
    assert llm.llm_engine.core.host_tier_stats()["blocks"] == 0


@pytest.mark.parametrize("size", [0, -1, float("nan"), "4", True])
def test_a_size_must_be_gibibytes(make_llm: Callable[..., LLM], size: Any) -> None:
    with pytest.raises(ValueError, match="kv_offloading_size=.*use GiB above 0"):
        make_llm(kv_offloading_size=size)


def test_a_tier_needs_the_prefix_cache(make_llm: Callable[..., LLM]) -> None:
    with pytest.raises(ValueError, match="enable_prefix_caching=False"):
        make_llm(kv_offloading_size=1, enable_prefix_caching=False)


def test_a_tier_that_holds_no_block_is_refused(make_llm: Callable[..., LLM]) -> None:
    with pytest.raises(ValueError, match="holds no block"):
        make_llm(kv_offloading_size=1e-9)


def test_a_tier_beyond_the_machine_is_refused(make_llm: Callable[..., LLM]) -> None:
    with pytest.raises(ValueError, match="kv_offloading_size=1000000.*give the host tier less"):
        make_llm(kv_offloading_size=1_000_000)
