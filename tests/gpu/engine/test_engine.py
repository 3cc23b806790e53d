"""The whole engine on a GPU: its tokens are those of transformers and of the CPU, however steps are cut."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from octavo import LLM, SamplingParams

Make = Callable[..., LLM]
SOAK_SECONDS = float(os.environ.get("OCTAVO_TEST_SOAK_SECONDS", "20"))
# Logits in float32 that are nearer than this are one number to it: of the tiny models, whose logits reach 15,
# float32 and float64 differ by 2e-5.
TIE = 1e-4
# Others have what one of these has.
EVERY_KIND = ["llama", "qwen2-hybrid", "mixtral", "gpt-oss", "llama4", "deepseek-v3", "bamba"]
# Blocks that hold a request of theirs, and not all of a test's.
TIGHT_BLOCKS = {"gpt-oss": 34, "bamba": 12}

LIMITS: dict[str, dict[str, Any]] = {
    "unlimited": {},
    "chunks-of-16": {"max_num_batched_tokens": 16, "max_num_seqs": 4},
    "preempting": {"num_gpu_blocks_override": 24, "max_num_seqs": 8},
    "preempting-without-cache": {
        "num_gpu_blocks_override": 24,
        "max_num_seqs": 8,
        "enable_prefix_caching": False,
    },
    "kernel-by-kernel": {"enforce_eager": True},
}


def greedy(max_tokens: int = 24, **changes: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **changes)


def tokens_of(llm: LLM, prompts: list[list[int]], params: Any) -> list[list[int]]:
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert {output.outputs[0].finish_reason for output in outputs} <= {"length", "stop"}, outputs
    return [list(output.outputs[0].token_ids) for output in outputs]


def check_same(got: list[list[int]], want: list[list[int]], prompts: list[list[int]], judge: LLM) -> None:
    """Two runs give the same tokens, but where a request's two likeliest are as likely: a step of other rows
    adds in another order, and may choose the other one. What follows from then on is another text."""
    for prompt, ours, theirs in zip(prompts, got, want):
        assert len(ours) == len(theirs)
        parted = next((i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), None)
        if parted is None:
            continue
        asked = [prompt + theirs[:parted]]
        scored = judge.generate(asked, greedy(1, logprobs=2), use_tqdm=False)[0].outputs[0].logprobs
        assert scored is not None
        found = {token: entry.logprob for token, entry in scored[0].items()}
        where = f"token {parted} of {prompt}: {ours[parted]}, not {theirs[parted]}"
        assert ours[parted] in found and theirs[parted] in found, where
        assert abs(found[ours[parted]] - found[theirs[parted]]) < TIE, where


def metric(llm: LLM, name: str) -> Any:
    return next(m for m in llm.get_metrics() if m.name == f"octavo:{name}").value  # type: ignore[attr-defined]


def expected_of(folder: Path, prompts: list[list[int]], count: int) -> list[list[int]]:
    """transformers' greedy tokens, one prompt at a time, on the GPU in float32."""
    import transformers

    # Only its plain attention knows every mask and cap.
    load = transformers.AutoModelForCausalLM.from_pretrained
    model: Any = load(folder, dtype=torch.float32, attn_implementation="eager").cuda().eval()
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device="cuda")
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        expected.append(out[0, len(prompt) :].tolist())
    return expected


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_greedy_tokens_are_those_of_transformers_and_of_the_cpu(
    llm: Make, tiny_folder: Any, name: str
) -> None:
    prompts = tiny_models.random_prompts(12, low=1, high=60, seed=11)
    got = tokens_of(llm(name), prompts, greedy())
    if tiny_models.computed_by_transformers(name):
        assert got == expected_of(tiny_folder(name), prompts, 24)
    cpu = LLM(str(tiny_folder(name)), device="cpu", dtype="float32", max_model_len=256)
    assert got == tokens_of(cpu, prompts, greedy())


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS.keys())
@pytest.mark.parametrize("name", EVERY_KIND)
def test_tokens_do_not_depend_on_how_steps_are_cut(llm: Make, name: str, limits: dict[str, Any]) -> None:
    prompts = tiny_models.random_prompts(24, low=1, high=90, seed=12)
    prompts += [prompts[0][:40] + prompt for prompt in prompts[:8]]  # shared prefixes
    judge = llm(name)
    whole = tokens_of(judge, prompts, greedy(40))
    if "num_gpu_blocks_override" in limits and name in TIGHT_BLOCKS:
        limits = {**limits, "num_gpu_blocks_override": TIGHT_BLOCKS[name]}
    engine = llm(name, **limits)
    check_same(tokens_of(engine, prompts, greedy(40)), whole, prompts, judge)
    check_same(tokens_of(engine, prompts, greedy(40)), whole, prompts, judge)  # from the cache, and replayed
    if "num_gpu_blocks_override" in limits:
        assert metric(engine, "num_preemptions") > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "temperature"),
    [("qwen3", 0.0), ("qwen3", 1.0), ("mixtral", 0.0), ("bamba", 0.0), ("deepseek-v3", 0.0)],
)
def test_a_replayed_step_is_the_launched_one_bit_for_bit(
    llm: Make, name: str, dtype: str, temperature: float
) -> None:
    """Tokens, and every byte of keys and values."""
    prompts = tiny_models.random_prompts(20, low=1, high=80, seed=13)
    params = [
        SamplingParams(temperature=temperature, top_p=0.95, seed=i, max_tokens=30, ignore_eos=True)
        for i in range(len(prompts))
    ]
    seen = []
    for eager in (True, False):
        engine = llm(name, dtype=dtype, enforce_eager=eager)
        runner: Any = engine.llm_engine.runner
        runner.pool.zero_()
        tokens = [tokens_of(engine, prompts, params) for _ in range(2)]
        seen.append((tokens, runner.pool.clone()))
    assert seen[0][0] == seen[1][0]
    assert torch.equal(seen[0][1].view(torch.uint8), seen[1][1].view(torch.uint8))


def test_the_usual_steps_are_captured_while_the_engine_is_made(llm: Make, captured_early: None) -> None:
    prompts = tiny_models.random_prompts(20, low=1, high=60, seed=16)
    engine = llm("llama")
    runner: Any = engine.llm_engine.runner
    graphs = runner._run.__self__._graphs
    usual = runner._shapes.usual_graphs
    assert len(usual) > 10
    assert set(graphs) == {*usual, runner._shapes.largest_graph}
    assert tokens_of(engine, prompts, greedy()) == tokens_of(
        llm("llama", enforce_eager=True), prompts, greedy()
    )
    later = set(graphs) - {*usual, runner._shapes.largest_graph}
    assert all(shape.queries != 1 for shape in later), later


def test_everything_that_edits_logits_does_on_the_gpu_what_it_does_on_the_cpu(
    llm: Make, tiny_folder: Any
) -> None:
    prompts = tiny_models.random_prompts(10, low=5, high=50, seed=14)
    kinds: list[dict[str, Any]] = [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.7, "frequency_penalty": 0.4},
        {"logit_bias": {17: 5.0, 18: -100.0}},
        {"allowed_token_ids": list(range(100, 140))},
        {"bad_words": ["the", "cache"]},
        {"min_tokens": 10, "stop_token_ids": list(range(0, 400, 5))},
        {"temperature": 0.8, "top_k": 20, "seed": 3},
        {"temperature": 1.0, "top_p": 0.7, "min_p": 0.02, "seed": 4},
        {},
        {"temperature": 1.2, "repetition_penalty": 1.1, "seed": 5},
    ]
    params = [
        SamplingParams(**{"temperature": 0.0, "max_tokens": 24, "ignore_eos": True, **kind}) for kind in kinds
    ]
    cpu = LLM(str(tiny_folder("llama")), device="cpu", dtype="float32", max_model_len=256)
    engine = llm("llama")
    expected = tokens_of(cpu, prompts, params)
    assert tokens_of(engine, prompts, params) == expected
    assert tokens_of(engine, prompts, params) == expected


def test_log_probabilities_are_those_of_the_cpu(llm: Make, tiny_folder: Any) -> None:
    prompts = tiny_models.random_prompts(6, low=20, high=60, seed=15)
    params = [greedy(8, logprobs=4, prompt_logprobs=2), *[greedy(12)] * 4, greedy(8, logprobs=0)]
    cpu = LLM(str(tiny_folder("llama")), device="cpu", dtype="float32", max_model_len=256)
    ours = llm("llama", max_num_batched_tokens=48).generate(prompts, params, use_tqdm=False)
    for got, want in zip(ours, cpu.generate(prompts, params, use_tqdm=False)):
        assert list(got.outputs[0].token_ids) == list(want.outputs[0].token_ids)
        for mine, theirs in (
            (got.outputs[0].logprobs, want.outputs[0].logprobs),
            (got.prompt_logprobs, want.prompt_logprobs),
        ):
            assert (mine is None) == (theirs is None)
            for a, b in zip(mine or [], theirs or []):
                assert (a is None) == (b is None)
                if a is not None and b is not None:
                    assert a.keys() == b.keys()
                    values = [[entry.logprob for entry in row.values()] for row in (a, b)]
                    assert np.allclose(*values, atol=1e-3)


def test_a_step_that_finds_no_memory_fails_its_requests_and_nothing_else(llm: Make) -> None:
    engine = llm("llama", max_num_batched_tokens=256)
    prompts = tiny_models.random_prompts(4, low=100, high=120, seed=16)
    before = tokens_of(engine, prompts, greedy(8))
    engine.reset_prefix_cache()
    runner: Any = engine.llm_engine.runner
    logits = runner._logits

    def greedy_for_memory(hidden: torch.Tensor) -> torch.Tensor:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        return logits(hidden)  # type: ignore[no-any-return]

    runner._logits = greedy_for_memory
    # Log-probabilities take the path that allocates.
    outputs = engine.generate(prompts, greedy(8, logprobs=1), use_tqdm=False)
    runner._logits = logits
    assert {output.outputs[0].finish_reason for output in outputs} == {"error"}
    assert all("memory" in str(output.outputs[0].stop_reason) for output in outputs)
    assert tokens_of(engine, prompts, greedy(8)) == before


def test_steps_go_on_while_the_interpreter_is_held(llm: Make) -> None:
    """The loop needs no GIL: captured steps run until it is as far ahead as it may be."""
    made = llm("llama")
    tokens_of(made, [[5, 6, 7]], greedy(40))
    engine = made.llm_engine
    engine.add_request("a", [5, 6, 7, 8], greedy(200))
    before = engine.core.stats()["steps"]
    for _ in range(4):
        engine.step()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5)
    try:
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            pass
        assert engine.core.stats()["steps"] >= before + 30
    finally:
        sys.setswitchinterval(interval)
    last = None
    while engine.has_unfinished_requests():
        last = (engine.step() or [last])[-1]
    assert last is not None and len(last.outputs[0].token_ids) == 200


def test_requests_come_and_go_for_a_while_and_each_gets_its_own_tokens(llm: Make) -> None:
    """Random jobs over a small pool, with aborts at any moment: the soak."""
    prompts = tiny_models.random_prompts(40, low=1, high=100, seed=17)
    lengths = [1 + 7 * i % 60 for i in range(len(prompts))]
    alone = tokens_of(llm("llama"), prompts, [greedy(length) for length in lengths])
    engine = llm("llama", num_gpu_blocks_override=40, max_num_seqs=12, max_num_batched_tokens=64).llm_engine
    draw, serial, running, checked = random.Random(18), 0, {}, 0
    end = time.monotonic() + SOAK_SECONDS
    while time.monotonic() < end or engine.has_unfinished_requests():
        if time.monotonic() < end and draw.random() < 0.5 and len(running) < 30:
            which, serial = draw.randrange(len(prompts)), serial + 1
            engine.add_request(f"r{serial}", prompts[which], greedy(lengths[which]))
            running[f"r{serial}"] = which
        if running and draw.random() < 0.05:
            engine.abort_request(draw.choice(list(running)))
        if draw.random() < 0.001:
            engine.reset_prefix_cache()
        for output in engine.step():
            if output.finished:
                which, completion = running.pop(output.request_id), output.outputs[0]
                want, got = alone[which], list(completion.token_ids)
                assert got == want[: len(got)], f"{output.request_id} of prompt {which}"
                assert completion.finish_reason == "abort" or len(got) == len(want)
                checked += 1
    assert checked > 200
    stats = engine.core.stats()
    assert stats["free_blocks"] == stats["total_blocks"]
    assert stats["failed_steps"] == 0
