"""FP8 checkpoints of every format: logits, what is left alone, what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from fp8_checkpoints import FORMATS, reference_of, round_input, save_fp8, set_config
from models.stepper import Stepper
from safetensors.torch import load_file, save_file

from octavo.errors import ModelError, WeightsError
from octavo.hf_config import load_model_spec
from octavo.layers.fp8 import Fp8Linear
from octavo.layers.norm import Input, tensor_of

PROMPT = tiny_models.random_prompts(1, low=100, high=100, seed=3)[0]
NAMES = ("llama", "qwen3")


@torch.inference_mode()
def expected(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([PROMPT])).logits[0]
    return logits


def distance(got: torch.Tensor, want: torch.Tensor) -> tuple[float, float]:
    """Mean and largest error, in units of the logits' spread."""
    error = (got - want).abs() / want.std()
    return error.mean().item(), error.max().item()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_every_product_is_that_of_the_tensors_in_the_checkpoint(
    tiny_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    """In float64, layer by layer, for the inputs that the model has."""
    folder = save_fp8(tiny_folder(name), tmp_path / "fp8", form)
    stepper, calls = Stepper(folder), []

    def record(layer: Fp8Linear, given: Input) -> torch.Tensor:
        x = tensor_of(given)
        out = layer.forward(x)
        calls.append((layer, x.clone(), out.clone()))
        return out

    monkeypatch.setattr(Fp8Linear, "__call__", record)
    stepper.feed(PROMPT, [60, 1, 39])
    assert len(calls) == 3 * 4 * stepper.spec.num_layers
    paths = {layer: path for path, layer in stepper.model.named_modules()}
    tensors = load_file(folder / "model.safetensors")
    for layer, x, out in calls:
        weight = weight_of(tensors, paths[layer], layer, form).double()
        rounded = round_input(x, static=FORMATS[form][3]).double()
        size = rounded.abs() @ weight.abs().t()
        assert ((out.double() - rounded @ weight.t()).abs() <= 1e-6 * size).all()


def weight_of(tensors: Any, path: str, layer: Fp8Linear, form: str) -> torch.Tensor:
    parent, own = path.rpartition(".")[::2]
    modules = [f"{parent}.{part}" for part, _ in layer.parts or ((own, 0),)]
    scale = FORMATS[form][1][0]
    weights = [tensors[f"{module}.weight"].float() * tensors[f"{module}.{scale}"] for module in modules]
    return torch.cat(weights)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_near_those_of_the_dequantized_model(
    tiny_folder: Any, reference: Any, tmp_path: Path, name: str, form: str
) -> None:
    """Differences of 1e-6 decide which way an input between two of the format's numbers falls, and each that
    falls the other way moves later ones: no two programs agree on all. They agree on far more than a scale
    that is off would leave, and both are as far from the model before it was quantized."""
    folder = save_fp8(tiny_folder(name), tmp_path / "fp8", form)
    got = Stepper(folder).feed(PROMPT, [60, 1, 39])
    dequantized = expected(reference_of(tiny_folder(name), folder, form))
    near, _ = distance(got, dequantized)
    lost, most = distance(got, expected(reference(name)))
    theirs, _ = distance(dequantized, expected(reference(name)))
    assert near < 0.6 * lost
    assert near < 0.06
    assert 0.01 < lost < 0.2 and most < 1.5
    assert 0.8 < lost / theirs < 1.25


@pytest.mark.parametrize("name", [*NAMES, "bamba", "gemma3"])
def test_a_checkpoint_is_quantized_as_it_is_loaded(tiny_folder: Any, tmp_path: Path, name: str) -> None:
    """By row: the same bits as a checkpoint that holds the result."""
    folder = tiny_folder(name)
    online = Stepper(folder, quantization=load_model_spec(folder, quantization="fp8").quantization)
    stored = Stepper(save_fp8(folder, tmp_path / "fp8", "compressed-channel"))
    assert torch.equal(online.feed(PROMPT, [64, 36]), stored.feed(PROMPT, [64, 36]))
    kinds = {path.rpartition(".")[2] for path, m in online.model.named_modules() if isinstance(m, Fp8Linear)}
    assert {"o_proj", "qkv_proj", "gate_up_proj", "down_proj"} <= kinds


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_models_stay_near(tiny_folder: Any, reference: Any, tmp_path: Path, dtype: str) -> None:
    folder = save_fp8(tiny_folder("llama"), tmp_path / "fp8", "compressed-channel")
    stepper = Stepper(folder, dtype=dtype)
    mean, most = distance(stepper.feed(PROMPT, [60, 1, 39]), expected(reference("llama")))
    assert 0.01 < mean < 0.2
    assert most < 1.5
    held = {name: parameter.dtype for name, parameter in stepper.model.named_parameters()}
    assert held["lm_head.weight"] == held["model.embed_tokens.weight"] == getattr(torch, dtype)
    assert held["model.layers.0.mlp.down_proj.weight"] == torch.float8_e4m3fn


def test_what_is_ignored_keeps_its_dtype(tiny_folder: Any, tmp_path: Path) -> None:
    ignored = ("model.layers.1.mlp.down_proj", "model.layers.2.self_attn.o_proj")
    folder = save_fp8(tiny_folder("llama"), tmp_path / "fp8", "fp8", ignored=ignored)
    stepper = Stepper(folder)
    for path in ignored:
        module = stepper.model.get_submodule(path)
        assert module.weight.dtype == torch.float32 and module.weight.is_cpu
    assert isinstance(stepper.model.get_submodule("model.layers.0.mlp.down_proj"), Fp8Linear)
    want = expected(reference_of(tiny_folder("llama"), folder, "fp8"))
    assert distance(stepper.feed(PROMPT, [100]), want)[0] < 0.06


def test_half_of_a_fused_product_cannot_be_ignored(tiny_folder: Any, tmp_path: Path) -> None:
    ignored = ("model.layers.1.self_attn.q_proj",)
    folder = save_fp8(tiny_folder("llama"), tmp_path / "fp8", "fp8", ignored=ignored)
    with pytest.raises(ModelError, match=r"leaves model\.layers\.1\.self_attn\.q_proj in 16 or 32 bits"):
        Stepper(folder)


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


O_PROJ = "model.layers.0.self_attn.o_proj"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (f"{O_PROJ}.weight_scale", None, f"missing: {O_PROJ}.weight_scale"),
        (f"{O_PROJ}.weight_scale", torch.ones(7), f"{O_PROJ}.weight_scale is \\[7\\]"),
        (f"{O_PROJ}.weight_scale", torch.ones((), dtype=torch.int32), f"{O_PROJ}.weight_scale is I32"),
        (f"{O_PROJ}.weight_scale", torch.tensor(float("nan")), f"{O_PROJ}.weight_scale holds a scale of nan"),
        (f"{O_PROJ}.weight_scale", torch.tensor(-1.0), f"{O_PROJ}.weight_scale holds a scale of -1"),
        (f"{O_PROJ}.input_scale", torch.tensor(0.0), f"{O_PROJ}.input_scale holds a scale of 0"),
        (f"{O_PROJ}.weight", torch.ones(128, 128), f"{O_PROJ}.weight is F32; F8_E4M3 are the linear layers"),
        ("lm_head.weight", torch.ones(512, 128).to(torch.float8_e4m3fn), "lm_head.weight is F8_E4M3; "),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tiny_folder: Any, tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    folder = save_fp8(tiny_folder("llama"), tmp_path / "fp8", "fp8-static")
    change(folder, name, tensor)
    with pytest.raises(WeightsError, match=message):
        Stepper(folder)


def test_8_bits_without_a_quantization_config_are_refused(tiny_folder: Any, tmp_path: Path) -> None:
    folder = save_fp8(tiny_folder("llama"), tmp_path / "fp8", "fp8")
    set_config(folder, None)
    with pytest.raises(WeightsError, match="is F8_E4M3"):
        Stepper(folder)
