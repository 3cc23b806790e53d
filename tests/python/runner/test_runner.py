"""The runner turns the core's columns into the tokens that transformers generates, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from runner.driver import Driver, greedy, params

import octavo

LIMITS = [
    {},
    {"max_num_batched_tokens": 16, "max_num_seqs": 4},
    {"max_num_batched_tokens": 48},
    {"blocks": 20, "max_num_seqs": 8},
]
LIMIT_IDS = ["unlimited", "chunks-of-16", "chunks-of-48", "preempting"]


@torch.inference_mode()
def expected_tokens(model: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(ids, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


@torch.inference_mode()
def expected_logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    """[len(ids), V]: row i is the distribution of token i + 1."""
    logprobs: torch.Tensor = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return logprobs


@pytest.mark.parametrize("limits", LIMITS, ids=LIMIT_IDS)
def test_greedy_tokens_are_transformers(tiny_folder: Any, reference: Any, limits: dict[str, Any]) -> None:
    prompts = tiny_models.random_prompts(12, low=1, high=60, seed=11)
    driver = Driver(tiny_folder("llama"), **limits)
    got = driver.run(prompts, greedy(24))
    assert got == [expected_tokens(reference("llama"), prompt, 24) for prompt in prompts]
    if "blocks" in limits:
        assert driver.engine.stats()["preemptions"] > 0


def test_every_model_generates_what_it_should(tiny_folder: Any, reference: Any, model_name: str) -> None:
    prompts = tiny_models.random_prompts(4, low=5, high=60, seed=12)
    got = Driver(tiny_folder(model_name), max_num_batched_tokens=48).run(prompts, greedy(24))
    assert got == [expected_tokens(reference(model_name), prompt, 24) for prompt in prompts]


def test_the_pool_has_the_layout_that_transfers_rely_on(tiny_folder: Any) -> None:
    driver = Driver(tiny_folder("qwen3"), blocks=40)
    assert driver.runner.pool.shape == (40, 3, 2, 2, 16, 32)
    assert driver.runner.pool.is_contiguous()


def test_logprobs_are_of_the_raw_logits(tiny_folder: Any, reference: Any) -> None:
    """Temperature, penalties and top_k change what is drawn, not what is reported."""
    prompt = tiny_models.random_prompts(1, low=30, high=30, seed=13)[0]
    sampling = params(
        max_tokens=10, temperature=1.5, top_k=50, repetition_penalty=1.3, seed=5, num_logprobs=4
    )
    driver = Driver(tiny_folder("llama"))
    tokens = driver.run([prompt], sampling)[0]
    want = expected_logprobs(reference("llama"), prompt + tokens)
    (rows,) = driver.logprobs.values()
    assert len(rows) == 10
    for i, (token, row) in enumerate(zip(tokens, rows)):
        raw = want[len(prompt) - 1 + i]
        assert row.token_ids[0] == token
        assert np.allclose(row.values, raw[torch.from_numpy(row.token_ids).long()], atol=1e-4)
        assert row.ranks == 1 + int((raw > raw[token]).sum())
        assert row.token_ids[1:].tolist() == raw.topk(4).indices.tolist()


def test_nobody_pays_for_logprobs_that_nobody_asked_for(tiny_folder: Any) -> None:
    driver = Driver(tiny_folder("llama"))
    driver.add([5, 6, 7], greedy(2))
    result = driver.step()
    assert result.logprobs is None
    assert result.prompt_logprobs is None
    assert result.tokens.dtype == np.int32


@pytest.mark.parametrize("score_rows", [4, 1000])
def test_prompt_logprobs_are_scored_in_chunks(tiny_folder: Any, reference: Any, score_rows: int) -> None:
    prompts = tiny_models.random_prompts(2, low=30, high=40, seed=14)
    driver = Driver(tiny_folder("mistral"), max_num_batched_tokens=24)
    driver.runner.score_rows = score_rows
    first = driver.add(prompts[0], greedy(2, num_prompt_logprobs=3))
    second = driver.add(prompts[1], greedy(2, num_prompt_logprobs=0))
    while driver.engine.has_unfinished():
        driver.step()
    seen: dict[int, list[int]] = {first: [], second: []}
    for scores in driver.scores:
        for i, request in enumerate(scores.request.tolist()):
            prompt = prompts[0] if request == first else prompts[1]
            assert scores.top[i] == (3 if request == first else 0)
            position = int(scores.position[i])
            raw = expected_logprobs(reference("mistral"), prompt)[position - 1]
            ids = scores.logprobs.token_ids[i]
            assert ids[0] == prompt[position]
            assert np.allclose(scores.logprobs.values[i], raw[torch.from_numpy(ids).long()], atol=1e-4)
            assert scores.logprobs.ranks[i] == 1 + int((raw > raw[prompt[position]]).sum())
            seen[request].append(position)
    assert seen == {request: list(range(1, len(p))) for request, p in zip((first, second), prompts)}


def test_a_seeded_request_draws_the_same_tokens_in_any_batch(tiny_folder: Any) -> None:
    prompts = tiny_models.random_prompts(16, low=5, high=40, seed=15)
    sampling = params(max_tokens=20, temperature=1.0, top_p=0.95, seed=1234)
    alone = Driver(tiny_folder("qwen2")).run(prompts[:1], sampling)[0]
    together = Driver(tiny_folder("qwen2"), max_num_batched_tokens=64).run(prompts, sampling)
    assert together[0] == alone
    assert len({tuple(tokens) for tokens in together}) > 12


def test_greedy_and_drawn_rows_share_a_step(tiny_folder: Any, reference: Any) -> None:
    prompts = tiny_models.random_prompts(2, low=20, high=20, seed=16)
    driver = Driver(tiny_folder("llama"))
    still = driver.add(prompts[0], greedy(12))
    driver.add(prompts[1], params(max_tokens=12, temperature=2.0, seed=1))
    while driver.engine.has_unfinished():
        driver.step()
    assert driver.tokens[still] == expected_tokens(reference("llama"), prompts[0], 12)


@pytest.mark.parametrize(
    "sampling", [greedy(8), params(max_tokens=8, temperature=1.0, seed=3, num_logprobs=2)]
)
def test_a_row_that_is_not_finite_fails_alone(tiny_folder: Any, sampling: Any) -> None:
    driver = Driver(tiny_folder("llama"))
    good, bad = driver.add([9, 10, 11], sampling), driver.add([9, 10, 400], sampling)
    with torch.inference_mode():
        driver.model.model.embed_tokens.weight[400] = float("nan")
    while driver.engine.has_unfinished():
        driver.step()
    assert driver.tokens[bad] == []
    assert driver.finish[bad] == 4  # error
    assert len(driver.tokens[good]) == 8
    assert driver.finish[good] == 2  # length


def test_bf16_generates_and_stays_finite(tiny_folder: Any, model_name: str) -> None:
    prompts = tiny_models.random_prompts(3, low=5, high=40, seed=17)
    got = Driver(tiny_folder(model_name), dtype="bfloat16").run(prompts, greedy(16))
    assert [len(tokens) for tokens in got] == [16] * 3


def test_the_runner_stays_below_its_limit() -> None:
    folder = Path(octavo.__file__).parent / "runner"
    assert all(len(path.read_text().splitlines()) < 300 for path in folder.glob("*.py"))
