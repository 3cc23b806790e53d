"""Recurrent layers keep their states in the KV pool: exact in any chunks, resumed, preempted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from runner.driver import Driver, greedy
from runner.test_runner import expected_logprobs, expected_tokens

COUNT = 32  # tokens of each output
PROMPTS = tiny_models.random_prompts(64, low=1, high=90, seed=31)
RUNS: dict[str, dict[str, Any]] = {
    "whole prompts": {},
    "chunks of 16": {"max_num_batched_tokens": 16, "max_num_seqs": 8},
    "odd chunks, no cache": {"max_num_batched_tokens": 37, "cache": {"enable_prefix_caching": False}},
    "every state cached": {"max_num_batched_tokens": 48, "cache": {"mamba_cache_interval": -1}},
    "preempting": {"blocks": 24, "max_num_seqs": 12},
    "preempting, no cache": {"blocks": 24, "max_num_seqs": 12, "cache": {"enable_prefix_caching": False}},
    "blocks of 4": {"cache": {"block_size": 4}, "max_num_batched_tokens": 64},
    "without chunks": {"enable_chunked_prefill": False},
}


@pytest.fixture(scope="module")
def expected(reference: Callable[[str], Any]) -> list[list[int]]:
    return [expected_tokens(reference("bamba"), prompt, COUNT) for prompt in PROMPTS]


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path]) -> Path:
    return tiny_folder("bamba")


@pytest.mark.parametrize("limits", RUNS.values(), ids=RUNS)
def test_greedy_tokens_are_transformers(
    folder: Path, expected: list[list[int]], limits: dict[str, Any]
) -> None:
    driver = Driver(folder, **limits)
    assert driver.run(PROMPTS, greedy(COUNT)) == expected
    stats = driver.engine.stats()
    assert (stats["preemptions"] > 0) == ("blocks" in limits)
    assert stats["free_blocks"] == stats["total_blocks"]


def test_requests_resume_from_the_snapshot_at_the_end_of_their_prompt(
    folder: Path, expected: list[list[int]]
) -> None:
    driver = Driver(folder)
    driver.run(PROMPTS, greedy(COUNT))
    before = driver.engine.stats()["prefix_hits"]
    assert driver.run(PROMPTS, greedy(COUNT)) == expected
    resumed = sum((len(prompt) - 1) // 16 * 16 for prompt in PROMPTS)
    assert driver.engine.stats()["prefix_hits"] - before == resumed > 1500


def test_a_shared_prefix_is_resumed_from_by_others_while_its_owner_runs(
    folder: Path, reference: Callable[[str], Any]
) -> None:
    prefix, *tails = tiny_models.random_prompts(9, low=20, high=40, seed=32)
    prefix = (prefix * 4)[:64]
    prompts = [prefix + tail for tail in tails]
    driver = Driver(folder, length=192, max_num_batched_tokens=32, cache={"mamba_cache_interval": 32})
    first = driver.add(prompts[0], greedy(COUNT))
    for _ in range(4):  # its prompt is in, and it goes on writing its own state
        driver.step()
    assert driver.run(prompts[1:], greedy(COUNT)) == [
        expected_tokens(reference("bamba"), prompt, COUNT) for prompt in prompts[1:]
    ]
    assert driver.tokens[first] == expected_tokens(reference("bamba"), prompts[0], COUNT)
    assert driver.engine.stats()["prefix_hits"] >= 7 * 64


def test_a_prefix_that_two_prompts_shared_is_resumed_from_by_all_later_ones(
    folder: Path, reference: Callable[[str], Any]
) -> None:
    prefix, *tails = tiny_models.random_prompts(6, low=40, high=60, seed=35)
    driver = Driver(folder, length=160)
    hits = []
    for tail in tails:
        prompt = prefix + tail
        assert driver.run([prompt], greedy(8)) == [expected_tokens(reference("bamba"), prompt, 8)]
        hits.append(driver.engine.stats()["prefix_hits"])
    shared = len(prefix) // 16 * 16
    assert hits == [0, 0, shared, 2 * shared, 3 * shared]


def test_granite_resumes_from_its_states_and_is_preempted(
    tiny_folder: Callable[[str], Path], reference: Callable[[str], Any]
) -> None:
    prompts = tiny_models.random_prompts(12, low=30, high=90, seed=36)
    want = [expected_tokens(reference("granite-hybrid"), prompt, COUNT) for prompt in prompts]
    driver = Driver(tiny_folder("granite-hybrid"), blocks=20, max_num_batched_tokens=40)
    assert driver.run(prompts, greedy(COUNT)) == want
    assert driver.engine.stats()["preemptions"] > 0
    hits = driver.engine.stats()["prefix_hits"]
    assert driver.run(prompts[:1], greedy(COUNT)) == driver.run(prompts[:1], greedy(COUNT)) == want[:1]
    assert driver.engine.stats()["prefix_hits"] > hits


def test_long_prompts_in_many_chunks(folder: Path, reference: Callable[[str], Any]) -> None:
    prompts = tiny_models.random_prompts(3, low=600, high=900, seed=33)
    driver = Driver(folder, length=1024, max_num_batched_tokens=100)
    want = [expected_tokens(reference("bamba"), prompt, COUNT) for prompt in prompts]
    assert driver.run(prompts, greedy(COUNT)) == want


def test_logprobs_of_prompt_and_output_are_transformers(
    folder: Path, reference: Callable[[str], Any]
) -> None:
    prompts = tiny_models.random_prompts(4, low=40, high=80, seed=34)
    driver = Driver(folder, max_num_batched_tokens=48)
    requests = [driver.add(p, greedy(COUNT, num_logprobs=3, num_prompt_logprobs=2)) for p in prompts]
    while driver.engine.has_unfinished():
        driver.step()
    for request, prompt in zip(requests, prompts):
        raw = expected_logprobs(reference("bamba"), prompt + driver.tokens[request])
        rows = driver.logprobs[request]
        assert len(rows) == COUNT
        for at, row in enumerate(rows, start=len(prompt) - 1):
            assert np.allclose(row.values, raw[at, torch.from_numpy(row.token_ids).long()], atol=1e-4)
        scored = 0
        for scores in driver.scores:
            for i in np.flatnonzero(scores.request == request):
                ids = torch.from_numpy(scores.logprobs.token_ids[i]).long()
                want = raw[int(scores.position[i]) - 1, ids]
                assert np.allclose(scores.logprobs.values[i], want, atol=1e-4)
                scored += 1
        assert scored == len(prompt) - 1


def test_states_lie_in_the_pool_beside_keys_and_values(folder: Path) -> None:
    """Parents of one state or four blocks of attention; what no group can use is where the waste says."""
    driver = Driver(folder, blocks=30)
    cut = driver.plan.footprint.cut
    assert [(group.kind, group.layers, group.split) for group in cut.groups] == [
        ("full", (1,), 4),
        ("state", (0, 2), 1),
    ]
    assert driver.runner.pool.shape == (30, cut.parent_bytes) == (30, 32768)
    context = driver.runner._context
    conv, scan = context.states[2]
    assert (conv.shape, scan.shape) == ((30, 3, 304), (30, 8, 12, 32))
    assert context.caches[1].shape == (120, 2, 2, 16, 32)
    driver.runner.pool.zero_()
    prompt = PROMPTS[3][:10]
    driver.run([prompt], greedy(1))
    written = driver.runner.pool.view(torch.uint8).ne(0).any(1).nonzero().flatten().tolist()
    assert len(written) == 2  # a parent for the state, one for the keys and values
    sizes = [int(driver.runner.pool[block].ne(0).sum()) for block in written]
    assert max(sizes) > 25000 > 10 * 2 * 2 * 32 * 4 >= min(sizes)


def test_a_failed_row_does_not_poison_who_takes_its_state_next(
    folder: Path, expected: list[list[int]]
) -> None:
    driver = Driver(folder, blocks=12, max_num_seqs=1, cache={"enable_prefix_caching": False})
    weight = driver.model.model.embed_tokens.weight
    with torch.inference_mode():
        good = weight[PROMPTS[0][0]].clone()
        weight[PROMPTS[0][0]] = float("nan")
    for _ in range(3):
        failed = driver.add(PROMPTS[0], greedy(2))
        driver.step()
        assert driver.finish[failed] == 4  # error
    with torch.inference_mode():
        weight[PROMPTS[0][0]] = good
    assert driver.run(PROMPTS[:4], greedy(COUNT)) == expected[:4]
