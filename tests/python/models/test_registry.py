"""Architectures are found by their Hugging Face names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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


def test_a_model_file_stays_short() -> None:
    """What makes adding a model cheap is kept by counting."""
    folder = Path(octavo.__file__).parent / "models"
    lengths = {path.name: len(path.read_text().splitlines()) for path in folder.glob("*.py")}
    assert max(lengths.values()) <= 120, lengths
