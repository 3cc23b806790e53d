"""Greedy generation from FP8 weights through the whole engine, and from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e.truth import mixed_prompts
from fp8_checkpoints import save_fp8
from models.stepper import Stepper

from octavo import LLM, SamplingParams
from octavo.cli.main import main
from octavo.hf_config import load_model_spec

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
SIZES: dict[str, Any] = {"num_threads": 1, "max_model_len": 256, "num_gpu_blocks_override": 512}


def assert_greedy(llm: LLM, stepper_of: Callable[[], Stepper]) -> None:
    """Each token is the likeliest of the model by itself, or as likely as its rounding can tell: an input
    between two numbers of the format may fall either way, which moves logits by some percent."""
    outputs = llm.generate(mixed_prompts()[:12], GREEDY, use_tqdm=False)
    best, gaps = 0, []
    for output in outputs:
        prompt, tokens = list(output.prompt_token_ids or ()), list(output.outputs[0].token_ids)
        assert len(tokens) == GREEDY.max_tokens
        ids = prompt + tokens[:-1]
        logits = stepper_of().feed(ids, [len(ids)])[len(prompt) - 1 :]
        chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        gap = (logits.amax(1) - chosen) / logits.std()
        best += int((gap == 0).sum())
        gaps.append(gap)
    every = torch.cat(gaps)
    assert best > 0.9 * len(every)
    assert every.max() < 0.5


@pytest.mark.parametrize("form", ["fp8", "compressed-channel", "fp8-static"])
def test_greedy_tokens_of_a_checkpoint(tiny_folder: Any, tmp_path: Path, form: str) -> None:
    folder = save_fp8(tiny_folder("llama"), tmp_path / "fp8", form)
    llm = LLM(folder, max_num_batched_tokens=64, **SIZES)
    spec = llm.llm_engine.plan.spec
    assert spec.quantization is not None and spec.quantization.stored
    assert_greedy(llm, lambda: Stepper(folder, dtype=spec.dtype))


def test_greedy_tokens_of_a_model_quantized_at_loading(tiny_folder: Any) -> None:
    folder = tiny_folder("qwen3")
    llm = LLM(folder, quantization="fp8", **SIZES)
    found = load_model_spec(folder, quantization="fp8").quantization
    assert_greedy(llm, lambda: Stepper(folder, quantization=found))
    why = llm.llm_engine.plan.why("weights_bytes")
    assert why is not None and why.endswith("in float32, linear layers in fp8")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_weights_in_8_bits(tiny_folder: Any, dtype: str) -> None:
    llm = LLM(tiny_folder("llama"), quantization="fp8", load_format="dummy", dtype=dtype, **SIZES)
    outputs = llm.generate(mixed_prompts()[:4], SamplingParams(max_tokens=8, logprobs=1), use_tqdm=False)
    assert all(output.outputs[0].finish_reason in ("length", "stop") for output in outputs)


def test_the_command_line_takes_it(tiny_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tiny_folder("llama"))
    arguments = ["--quantization", "fp8", "--dtype", "bfloat16"]
    assert main(["plan", folder, "--memory", "1GiB", "--json", *arguments]) == 0
    small = json.loads(capsys.readouterr().out)
    assert main(["plan", folder, "--memory", "1GiB", "--json", "--dtype", "bfloat16"]) == 0
    large = json.loads(capsys.readouterr().out)
    assert (small["quantization"], large["quantization"]) == ("fp8", None)
    assert small["bytes"]["weights"] < large["bytes"]["weights"]
    assert main(["plan", folder, "--memory", "1GiB", *arguments]) == 0
    assert "bfloat16, linear layers fp8, KV cache bfloat16" in capsys.readouterr().out
    generate = ["generate", folder, "the cat", "--max-tokens", "4", "--ignore-eos", "--json"]
    assert main([*generate, "--kv-cache-memory-bytes", "8MiB", *arguments]) == 0
    assert len(json.loads(capsys.readouterr().out)["outputs"][0]["token_ids"]) == 4
