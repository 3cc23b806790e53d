"""GPT-OSS's experts in 4 bits are the weights that transformers unpacks, and are counted as such."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from models.stepper import Stepper
from safetensors.torch import load_file, save_file

from octavo.config import ModelConfig
from octavo.errors import ModelError, WeightsError
from octavo.hf_config import load_model_spec
from octavo.plan import footprint_of
from octavo.weights.mxfp4 import unpack

PROMPT = tiny_models.random_prompts(1, low=50, high=50, seed=3)[0]
PARTS = ("gate_up_proj", "down_proj")


@pytest.fixture
def folders(tiny_folder: Any, tmp_path: Path) -> tuple[Path, Path]:
    """The tiny GPT-OSS with experts of 4 bits, packed and as transformers unpacks them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    packed = Path(shutil.copytree(tiny_folder("gpt-oss"), tmp_path / "packed"))
    plain = Path(shutil.copytree(packed, tmp_path / "plain"))
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (packed / "config.json").write_text(json.dumps(config))
    tensors = load_file(packed / "model.safetensors")
    unpacked = dict(tensors)
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(PARTS)]:
        count, columns, rows = tensors.pop(name).shape
        shape = (count, rows, columns // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(122, 126, shape, dtype=torch.uint8, generator=generator)
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
        unpacked[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
    save_file(tensors, packed / "model.safetensors")
    save_file(unpacked, plain / "model.safetensors")
    return packed, plain


def test_packed_experts_are_the_weights_that_transformers_unpacks(folders: tuple[Path, Path]) -> None:
    packed, plain = folders
    assert load_model_spec(packed).mxfp4
    want = Stepper(plain).feed(PROMPT, [50])
    assert torch.equal(Stepper(packed).feed(PROMPT, [50]), want)
    assert want.isfinite().all()


def test_packed_experts_are_counted_as_they_will_be_held(folders: tuple[Path, Path]) -> None:
    sizes = [footprint_of(ModelConfig(model=folder, dtype="bfloat16")).weights_bytes for folder in folders]
    assert sizes[0] == sizes[1]


def test_every_number_of_four_bits_is_exact_in_bfloat16() -> None:
    blocks = torch.arange(16, dtype=torch.uint8).repeat(254, 1, 1)
    scales = torch.arange(1, 255, dtype=torch.uint8)[:, None]
    numbers = unpack(blocks, scales)
    assert torch.equal(numbers.bfloat16().float(), numbers)
    assert numbers[126, :6].tolist() == [0.0, 0.0, 0.5, 0.0, 1.0, 0.0]


def test_scales_that_are_missing_are_named(folders: tuple[Path, Path]) -> None:
    packed, _ = folders
    tensors = load_file(packed / "model.safetensors")
    name = "model.layers.2.mlp.experts.down_proj_scales"
    del tensors[name]
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(WeightsError, match=f"missing: {name}"):
        Stepper(packed)


def test_blocks_of_another_dtype_are_refused(folders: tuple[Path, Path]) -> None:
    packed, _ = folders
    tensors = load_file(packed / "model.safetensors")
    name = "model.layers.2.mlp.experts.down_proj_blocks"
    tensors[name] = tensors[name].float()
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(WeightsError, match=f"{name} is F32"):
        Stepper(packed)


@pytest.mark.parametrize("quantization", [{"quant_method": "gptq"}, {"bits": 4}, "mxfp4"])
def test_other_quantizations_are_refused(tiny_folder: Any, tmp_path: Path, quantization: Any) -> None:
    config = json.loads((tiny_folder("gpt-oss") / "config.json").read_text())
    config["quantization_config"] = quantization
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantization_config.* is not valid"):
        load_model_spec(tmp_path)
