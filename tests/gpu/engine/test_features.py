"""Host tier, drafts and encoders on a GPU: tokens are those without, also while steps are replayed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from octavo import LLM, SamplingParams, ops

Make = Callable[..., LLM]
DRAFTS = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 2}
MODELS = ["llama", "mistral-window", "qwen2-hybrid", "gemma3"]


def greedy(count: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)


def tokens_of(llm: LLM, prompts: list[Any], params: Any) -> list[list[int]]:
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert {output.outputs[0].finish_reason for output in outputs} <= {"length", "stop"}, outputs
    return [list(output.outputs[0].token_ids) for output in outputs]


def tier(llm: LLM) -> dict[str, int]:
    found: dict[str, int] = llm.llm_engine.core.host_tier_stats()
    return found


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_host_tier_changes_no_token(llm: Make, name: str, eager: bool) -> None:
    prompts = tiny_models.random_prompts(24, low=40, high=160, seed=41)
    params = [greedy(4 + i % 30) for i in range(len(prompts))]
    want = tokens_of(llm(name), prompts, params)
    tight = {"num_gpu_blocks_override": 40, "max_num_seqs": 12, "enforce_eager": eager}
    engine = llm(name, **tight, kv_offloading_size=0.05)
    for _ in range(4):
        assert tokens_of(engine, prompts, params) == want
    counted = tier(engine)
    assert counted["stored_blocks"] > 50 and counted["loaded_blocks"] > 50
    assert counted["failed_blocks"] == 0


def test_a_small_tier_under_a_storm_changes_no_token(llm: Make) -> None:
    """Blocks that the tier gives up, preemptions and aborts, for some hundred random jobs."""
    prompts = tiny_models.random_prompts(30, low=20, high=120, seed=42)
    want = tokens_of(llm(), prompts, greedy(30))
    engine = llm(num_gpu_blocks_override=30, max_num_seqs=10, kv_offloading_size=0.003).llm_engine
    draw, serial, running, checked = random.Random(43), 0, {}, 0
    while checked < 300 or engine.has_unfinished_requests():
        if checked < 300 and len(running) < 24 and draw.random() < 0.6:
            which, serial = draw.randrange(len(prompts)), serial + 1
            engine.add_request(str(serial), prompts[which], greedy(30))
            running[str(serial)] = which
        if running and draw.random() < 0.03:
            engine.abort_request(draw.choice(list(running)))
        for output in engine.step():
            if output.finished:
                got = list(output.outputs[0].token_ids)
                assert got == want[running.pop(output.request_id)][: len(got)]
                checked += 1
    counted = engine.core.host_tier_stats()
    assert counted["loaded_blocks"] > 0 and counted["evicted_blocks"] > 0
    assert engine.core.stats()["free_blocks"] == engine.core.stats()["total_blocks"]


@pytest.mark.parametrize("size", [8 << 10, 2 << 20])
def test_runs_of_bytes_arrive_in_both_directions(size: int) -> None:
    count = 32
    pool = torch.randint(0, 256, (count * size,), dtype=torch.uint8, device="cuda")
    before = pool.cpu()
    memory = torch.zeros(count * size, dtype=torch.uint8).pin_memory()
    order = torch.randperm(count)
    runs = torch.tensor([[i * size, int(j) * size, size] for i, j in enumerate(order)])
    ops.copy_runs(pool, memory, runs, to_pool=False)
    torch.cuda.synchronize()
    assert torch.equal(memory.view(count, size)[order], before.view(count, size))
    pool.zero_()
    ops.copy_runs(pool, memory, runs, to_pool=True)
    assert torch.equal(pool.cpu(), before)
    with pytest.raises(ValueError, match="copy_runs: runs"):
        ops.copy_runs(pool, memory, runs + size, to_pool=True)


def repetitive(seed: int) -> list[list[int]]:
    parts = tiny_models.random_prompts(16, low=3, high=12, seed=seed)
    return [(part * 12)[: 60 + 2 * i] for i, part in enumerate(parts)]


@pytest.mark.parametrize(
    "limits", [{}, {"num_gpu_blocks_override": 40, "max_num_seqs": 8}], ids=["", "tight"]
)
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_drafts_change_no_token(llm: Make, name: str, eager: bool, limits: dict[str, Any]) -> None:
    prompts, params = repetitive(44), [greedy(20 + 2 * i) for i in range(16)]
    params[2] = SamplingParams(temperature=0.8, seed=5, max_tokens=40, ignore_eos=True)
    want = tokens_of(llm(name), prompts, params)
    engine = llm(name, enforce_eager=eager, speculative_config=DRAFTS, **limits)
    for _ in range(2):
        assert tokens_of(engine, prompts, params) == want
    stats = engine.llm_engine.core.stats()
    assert stats["draft_tokens"] > stats["accepted_tokens"] > 0


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"enforce_eager": True},
        {"max_num_batched_tokens": 4, "max_num_seqs": 4},
        {"num_gpu_blocks_override": 24, "max_num_seqs": 8},
        {"num_gpu_blocks_override": 24, "max_num_seqs": 8, "kv_offloading_size": 0.01},
        {"speculative_config": DRAFTS},
    ],
    ids=["graphs", "eager", "chunks", "tight", "offloading", "drafts"],
)
def test_what_is_heard_is_what_the_cpu_hears(whisper_folder: Path, limits: dict[str, Any]) -> None:
    prompts: list[Any] = [
        {"multi_modal_data": {"audio": (sound, 16000)}} for sound in tiny_models.sounds(10, seed=3)
    ]
    prompts[3]["prompt_token_ids"] = [2, *range(40, 70)]
    options = {"dtype": "float32", "num_gpu_blocks_override": 400}
    want = tokens_of(LLM(whisper_folder, device="cpu", **options), prompts, greedy(40))
    engine = LLM(whisper_folder, device="cuda", **{**options, **limits})
    for _ in range(2):
        assert tokens_of(engine, prompts, greedy(40)) == want
