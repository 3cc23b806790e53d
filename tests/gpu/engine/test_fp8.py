"""Linear layers in FP8 on a GPU: torch._scaled_mm against float64, and logits of whole models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from fp8_checkpoints import FORMATS, reference_of, round_input, save_fp8

from octavo import LLM, SamplingParams
from octavo.layers.fp8 import FP8, FP8_MAX, Fp8Linear, device_product
from octavo.layers.norm import Input, tensor_of

Make = Callable[..., LLM]
SHAPES = [(1, 16, 16), (3, 48, 80), (17, 512, 1024), (300, 2048, 256)]  # rows, columns, rows of the weight
# Products of e4m3 numbers are exact; tensor cores keep some 14 bits of their sums. Of the sum of magnitudes.
SUM_ERROR = 2**-11
PROMPTS = tiny_models.random_prompts(3, low=70, high=100, seed=51)
SCORED = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=tiny_models.VOCAB_SIZE, ignore_eos=True)
ROOM: dict[str, Any] = {"max_logprobs": -1, "max_model_len": 256, "num_gpu_blocks_override": 400}


def random_fp8(*shape: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (100 * drawn).clamp(-FP8_MAX, FP8_MAX).to("cuda", FP8)


@pytest.mark.parametrize("rows_inside", [False, True])
@pytest.mark.parametrize(("rows", "columns", "out"), SHAPES)
def test_scaled_products_equal_those_of_float64(rows: int, columns: int, out: int, rows_inside: bool) -> None:
    if rows_inside and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("torch scales rows inside the product from capability 9.0 on")
    x, weight = random_fp8(rows, columns, seed=0), random_fp8(out, columns, seed=1)
    draw = torch.Generator().manual_seed(2)
    x_scale, weight_scale = ((torch.rand(n, generator=draw) + 0.01).cuda() for n in (rows, out))
    got = device_product(x, x_scale, weight, weight_scale, rows_inside=rows_inside)
    assert got.dtype == (torch.bfloat16 if rows_inside else torch.float32)
    left, right = x.double() * x_scale[:, None].double(), weight.double() * weight_scale[:, None].double()
    want, size = left @ right.t(), left.abs() @ right.abs().t()
    bound = SUM_ERROR * size + (want.abs() * 2**-8 if rows_inside else 0)
    assert ((got.double() - want).abs() <= bound).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["fp8-static", "compressed-channel"])
def test_every_product_of_a_model_is_that_of_its_dequantized_numbers(
    tiny_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, dtype: str
) -> None:
    """In float64, for the inputs that the model has, prompts and single tokens."""
    folder = save_fp8(tiny_folder("llama"), tmp_path / "fp8", form)
    llm = LLM(folder, device="cuda", dtype=dtype, enforce_eager=True, **ROOM)
    calls = []

    def record(layer: Fp8Linear, given: Input) -> torch.Tensor:
        x = tensor_of(given)
        out = layer.forward(x)
        calls.append((layer, x.clone(), out.clone()))
        return out

    monkeypatch.setattr(Fp8Linear, "__call__", record)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}
    assert len(calls) >= 4 * 4 * 3  # steps, products of a layer, layers
    for call, (layer, x, out) in enumerate(calls):
        largest = x.abs().amax(1).float()
        sane = (largest > 1e-6) & (largest < 1e6)  # a step's rows behind its tokens hold anything
        assert sane.float().mean() > 0.5, call
        x, out = x[sane], out[sane]
        rounded = round_input(x.float().cpu(), static=FORMATS[form][3]).double()
        weight = (layer.weight.double() * layer.weight_scale.double()[:, None]).cpu()
        want, size = rounded @ weight.t(), rounded.abs() @ weight.abs().t()
        bound = SUM_ERROR * size + (want.abs() * 2**-8 if dtype == "bfloat16" else 0)
        error = (out.double().cpu() - want).abs() / bound
        wrong = ~(error <= 1)
        where = f"product {call}, {len(x)} rows, wrong at {wrong.nonzero()[:8].tolist()}"
        assert not wrong.any(), f"{where}, up to {error.max()} times what is allowed"


def logits_of(llm: LLM) -> torch.Tensor:
    """Log-probabilities of every token after each token of the prompts, [N, V]."""
    found = []
    for output in llm.generate(PROMPTS, SCORED, use_tqdm=False):
        for row in output.prompt_logprobs or ():
            if row is not None:
                found.append([row[token].logprob for token in range(tiny_models.VOCAB_SIZE)])
    return torch.tensor(found)


@torch.inference_mode()
def expected_of(model: Any) -> torch.Tensor:
    return torch.cat([model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1) for prompt in PROMPTS])


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """Mean error in units of the logits' spread."""
    return ((got - want).abs() / want.std()).mean().item()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_logits_are_near_those_of_the_dequantized_model(
    tiny_folder: Any, tmp_path: Path, name: str, dtype: str
) -> None:
    """An input between two of the format's numbers may fall either way, and moves what comes behind: in
    bfloat16 a CPU comes to 0.09. Numbers of another layer or token would be as far off as logits spread."""
    folder = save_fp8(tiny_folder(name), tmp_path / "fp8", "compressed-channel")
    want = expected_of(reference_of(tiny_folder(name), folder, "compressed-channel"))
    got = logits_of(LLM(folder, device="cuda", dtype=dtype, **ROOM))
    assert distance(got, want) < {"float32": 0.1, "bfloat16": 0.15}[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_quantized_at_loading_decodes_the_same_in_replayed_steps(llm: Make, dtype: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    prompts = tiny_models.random_prompts(12, low=1, high=60, seed=52)
    seen = []
    for eager in (True, False):
        engine = llm("qwen3", quantization="fp8", dtype=dtype, enforce_eager=eager)
        outputs = engine.generate(prompts, params, use_tqdm=False)
        assert {output.outputs[0].finish_reason for output in outputs} == {"length"}
        seen.append([list(output.outputs[0].token_ids) for output in outputs])
    assert seen[0] == seen[1]
