"""A text model is found in a checkpoint that it shares with an image encoder, by any of its spellings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from models.stepper import Stepper
from safetensors.torch import load_file, save_file

from octavo.config import ModelConfig
from octavo.errors import WeightsError
from octavo.plan import footprint_of

OTHERS = {
    "vision_tower.vision_model.post_layernorm.weight": torch.ones(16),
    "model.vision_tower.embeddings.patch_embedding.bias": torch.ones(16),
    "multi_modal_projector.mm_input_projection_weight": torch.ones(16, 96),
}
SPELLINGS: dict[str, Callable[[str], str]] = {
    "files": lambda name: f"language_model.{name}",
    "memory": lambda name: name.replace("model.", "model.language_model.", 1),
    "plain": lambda name: name,
}


def tower(source: Path, folder: Path, rename: Callable[[str], str]) -> Path:
    """Write the tiny Gemma 3 as the text model of a checkpoint for text and images."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    whole = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": config,
        "vision_config": {"hidden_size": 16},
    }
    (folder / "config.json").write_text(json.dumps(whole))
    tensors = load_file(folder / "model.safetensors")
    stored = {rename(name): tensor for name, tensor in tensors.items()}
    save_file({**stored, **OTHERS}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_its_names_is_the_same_model(
    tiny_folder: Any, tmp_path: Path, spelling: str
) -> None:
    prompt = tiny_models.random_prompts(1, low=60, high=60, seed=3)[0]
    folder = tower(tiny_folder("gemma3"), tmp_path / "whole", SPELLINGS[spelling])
    want = Stepper(tiny_folder("gemma3")).feed(prompt, [60])
    assert torch.equal(Stepper(folder).feed(prompt, [60]), want)


def test_a_whole_model_of_transformers_gives_its_text_model_s_logits(tmp_path: Path) -> None:
    import transformers

    text = tiny_models.config_of("gemma3").to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=5,
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).float().eval()
    with torch.no_grad():
        for name, weight in model.model.language_model.named_parameters():
            weight.normal_(0, 0.05 if "embed" in name else 0.1)
    model.save_pretrained(tmp_path)
    prompt = tiny_models.random_prompts(1, low=60, high=60, seed=4)[0]
    prompt = [token for token in prompt if token != 5]
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        want = model(ids, token_type_ids=torch.zeros_like(ids)).logits[0]
    got = Stepper(tmp_path).feed(prompt, [32, len(prompt) - 32])
    assert (got - want).abs().max().item() < 5e-5


def test_what_is_not_loaded_is_not_counted(tiny_folder: Any, tmp_path: Path) -> None:
    folder = tower(tiny_folder("gemma3"), tmp_path / "whole", SPELLINGS["files"])
    bytes_of = {
        path: footprint_of(ModelConfig(model=path, dtype="float32")).weights_bytes
        for path in (folder, tiny_folder("gemma3"))
    }
    assert len(set(bytes_of.values())) == 1


def test_a_tensor_that_is_missing_is_named(tiny_folder: Any, tmp_path: Path) -> None:
    folder = tower(tiny_folder("gemma3"), tmp_path / "whole", SPELLINGS["files"])
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.model.layers.3.post_feedforward_layernorm.weight"]
    tensors["language_model.model.layers.3.surplus"] = torch.ones(1)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        Stepper(folder)
    assert "missing: model.layers.3.post_feedforward_layernorm.weight" in str(caught.value)
    assert "not part of the model: language_model.model.layers.3.surplus" in str(caught.value)


def test_two_spellings_of_one_tensor_are_refused(tiny_folder: Any, tmp_path: Path) -> None:
    folder = tower(tiny_folder("gemma3"), tmp_path / "whole", SPELLINGS["files"])
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["language_model.model.norm.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="'model.norm.weight'.*name the same tensor"):
        Stepper(folder)
