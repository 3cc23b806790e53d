"""Experts are read one by one or all at once, transposed or not, and what is missing is named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from models.stepper import Stepper
from safetensors.torch import load_file, save_file

from octavo.config import LoadConfig, ModelConfig
from octavo.errors import WeightsError
from octavo.hf_config import load_model_spec
from octavo.models.registry import build
from octavo.plan import resolve
from octavo.weights.loader import load_weights

PROMPT = tiny_models.random_prompts(1, low=50, high=50, seed=3)[0]


def copy_of(tiny_folder: Any, name: str, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = Path(shutil.copytree(tiny_folder(name), tmp_path / "model"))
    return folder, load_file(folder / "model.safetensors")


@pytest.mark.parametrize("block", ["block_sparse_moe", "mlp"])
def test_mixtral_s_block_has_two_names(tiny_folder: Any, tmp_path: Path, block: str) -> None:
    folder, tensors = copy_of(tiny_folder, "mixtral", tmp_path)
    renamed = {name.replace("block_sparse_moe", block): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    want = Stepper(tiny_folder("mixtral")).feed(PROMPT, [50])
    assert torch.equal(Stepper(folder).feed(PROMPT, [50]), want)


def test_experts_may_be_stored_as_one_tensor(tiny_folder: Any, tmp_path: Path) -> None:
    folder, tensors = copy_of(tiny_folder, "qwen3-moe", tmp_path)
    for layer in (0, 2):
        path = f"model.layers.{layer}.mlp.experts"
        parts = {
            part: [tensors.pop(f"{path}.{expert}.{part}_proj.weight") for expert in range(8)]
            for part in ("gate", "up", "down")
        }
        both = [torch.cat(pair) for pair in zip(parts["gate"], parts["up"])]
        tensors[f"{path}.gate_up_proj"] = torch.stack(both)
        tensors[f"{path}.down_proj"] = torch.stack(parts["down"])
    save_file(tensors, folder / "model.safetensors")
    want = Stepper(tiny_folder("qwen3-moe")).feed(PROMPT, [50])
    assert torch.equal(Stepper(folder).feed(PROMPT, [50]), want)


@pytest.mark.parametrize(
    ("model", "missing"),
    [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.3.w2.weight"),
        ("qwen3-moe", "model.layers.2.mlp.experts.7.up_proj.weight"),
        ("gpt-oss", "model.layers.0.mlp.experts.gate_up_proj_bias"),
        ("gpt-oss", "model.layers.3.self_attn.sinks"),
        ("llama4", "model.layers.1.feed_forward.experts.down_proj"),
        ("llama4", "model.layers.3.feed_forward.shared_expert.up_proj.weight"),
        ("llama4", "model.layers.3.feed_forward.router.weight"),
        ("deepseek-v2", "model.layers.0.self_attn.kv_b_proj.weight"),
        ("deepseek-v3", "model.layers.2.mlp.gate.e_score_correction_bias"),
    ],
)
def test_a_tensor_that_is_missing_is_named(
    tiny_folder: Any, tmp_path: Path, model: str, missing: str
) -> None:
    folder, tensors = copy_of(tiny_folder, model, tmp_path)
    del tensors[missing]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        Stepper(folder)
    assert f"missing: {missing.replace('block_sparse_moe', 'mlp')}" in str(caught.value)
    assert "not part" not in str(caught.value)


def test_an_expert_of_another_shape_is_named_with_both(tiny_folder: Any, tmp_path: Path) -> None:
    folder, tensors = copy_of(tiny_folder, "gpt-oss", tmp_path)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors[name] = tensors[name].transpose(1, 2).contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"gate_up_proj is \[6, 128, 96\], expected \[6, 96, 128\]"):
        Stepper(folder)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "gpt-oss", "llama4", "deepseek-v3"])
def test_dummy_experts_need_no_file_and_are_counted(tiny_folder: Any, tmp_path: Path, name: str) -> None:
    folder, _ = copy_of(tiny_folder, name, tmp_path)
    saved = resolve(ModelConfig(model=folder, dtype="float32"))
    (folder / "model.safetensors").unlink()
    plan = resolve(ModelConfig(model=folder, dtype="float32"), LoadConfig(load_format="dummy"))
    assert plan.footprint.weights_bytes == saved.footprint.weights_bytes
    spec = load_model_spec(folder)
    model = build(spec)
    load_weights(model, folder, spec, load_format="dummy")
    assert all(bool(torch.isfinite(weight).all()) for weight in model.parameters())
    biases = [weight for key, weight in model.named_parameters() if key.endswith("bias")]
    assert not any(bool(weight.any()) for weight in biases)


def test_layers_that_predict_further_tokens_are_passed_over(tiny_folder: Any, tmp_path: Path) -> None:
    folder, tensors = copy_of(tiny_folder, "deepseek-v3", tmp_path)
    tensors["model.layers.3.eh_proj.weight"] = torch.zeros(128, 256)
    tensors["model.layers.3.self_attn.kv_a_layernorm.weight"] = torch.zeros(48)
    save_file(tensors, folder / "model.safetensors")
    want = Stepper(tiny_folder("deepseek-v3")).feed(PROMPT, [50])
    assert torch.equal(Stepper(folder).feed(PROMPT, [50]), want)
    tensors["model.layers.4.eh_proj.weight"] = torch.zeros(128, 256)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="not part of the model: model.layers.4.eh_proj.weight"):
        Stepper(folder)
