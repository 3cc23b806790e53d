"""Tiny checkpoints, and LLMs on the GPU made from them."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

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


@pytest.fixture(autouse=True)
def captured_late(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests make engines by the hundred: they capture a step when it comes, unless a test asks for
    captured_early."""
    from octavo.runner.shapes import ShapeTable

    if "captured_early" not in request.fixturenames:
        monkeypatch.setattr(ShapeTable, "usual_graphs", property(lambda _: []))


@pytest.fixture
def captured_early() -> None:
    """Engines capture the usual steps while they are made, as they do for users."""


@pytest.fixture
def llm(tiny_folder: Callable[[str], Path]) -> Iterator[Callable[..., Any]]:
    """Return a function: model name and options -> an LLM on the GPU, whose memory goes with the test."""
    from octavo import LLM

    def make(name: str = "llama", **options: Any) -> LLM:
        defaults = {
            "device": "cuda",
            "dtype": "float32",
            "max_model_len": 256,
            "num_gpu_blocks_override": 400,
            "max_num_seqs": 32,
            "max_num_batched_tokens": 512,
        }
        return LLM(str(tiny_folder(name)), **{**defaults, **options})

    yield make
    import torch

    gc.collect()
    torch.cuda.empty_cache()
