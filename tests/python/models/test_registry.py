"""Architectures are found by their Hugging Face names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import octavo
from octavo.errors import ModelError
from octavo.hf_config import ARCHITECTURES, load_model_spec
from octavo.models.registry import build, resolve


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_its_class(name: str) -> None:
    assert resolve(name).__name__ == name


def test_an_unknown_architecture_suggests_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean 'MistralForCausalLM'"):
        resolve("MistralForCausalM")


def test_a_model_has_no_weight_that_could_be_trained(tiny_folder: Any) -> None:
    model = build(load_model_spec(tiny_folder("qwen3")))
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_weight_may_be_looked_up_and_changed_as_in_any_torch_module(tiny_folder: Any) -> None:
    """Layers keep their parts as plain attributes too; both ways must lead to the same tensor."""
    model: Any = build(load_model_spec(tiny_folder("qwen2")))
    for path, module in model.named_modules():
        assert model.get_submodule(path) is module
        for name, weight in module.named_parameters(recurse=False):
            assert getattr(module, name) is weight
    model.load_state_dict({name: torch.zeros_like(weight) for name, weight in model.state_dict().items()})
    assert not model.model.layers[1].mlp.down_proj.weight.any()
    model.to(torch.bfloat16)
    assert model.model.layers[1].mlp.down_proj.weight.dtype == torch.bfloat16


def test_a_model_file_stays_short() -> None:
    """What makes adding a model cheap is kept by counting."""
    folder = Path(octavo.__file__).parent / "models"
    lengths = {path.name: len(path.read_text().splitlines()) for path in folder.glob("*.py")}
    assert max(lengths.values()) <= 120, lengths
