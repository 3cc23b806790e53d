"""Fixtures for every Python test: tiny checkpoints, made once in a session, and their reference models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models

# Before transformers is imported anywhere: no test may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function: name (one of tiny_models.NAMES) -> the folder of its checkpoint."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tiny_models.save_model(tmp_path_factory.mktemp(name), name)
        return folders[name]

    return folder


@pytest.fixture(scope="session")
def reference(tiny_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    """Return a function: name -> transformers' model of the same checkpoint, float32, eval mode."""
    models: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in models:
            import torch
            import transformers

            loaded = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder(name), dtype=torch.float32)
            models[name] = loaded.eval()
        return models[name]

    return load


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny Whisper, which is no model of text and in none of their tests."""
    return tiny_models.save_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="session")
def whisper(whisper_folder: Path) -> Any:
    """transformers' model of the same checkpoint, float32, eval mode."""
    import torch
    import transformers

    kind = transformers.WhisperForConditionalGeneration
    return kind.from_pretrained(whisper_folder, dtype=torch.float32).eval()


@pytest.fixture(params=tiny_models.NAMES)
def model_name(request: pytest.FixtureRequest) -> str:
    """Every tiny model in turn."""
    return str(request.param)
