from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e.truth import Truth, compute_truth

from octavo import LLM


@pytest.fixture(scope="session")
def truth(reference: Callable[[str], Any]) -> Callable[[str], Truth]:
    """Returns a function: name of a tiny model -> what transformers says about it."""
    known: dict[str, Truth] = {}

    def of(name: str) -> Truth:
        if name not in known:
            known[name] = compute_truth(reference(name))
        return known[name]

    return of


@pytest.fixture(scope="session")
def make_llm(tiny_folder: Callable[[str], Path]) -> Callable[..., LLM]:
    """Returns a function: name, options -> an LLM. One thread, as test machines are shared."""

    def make(name: str = "llama", **options: Any) -> LLM:
        defaults = {"num_threads": 1, "max_model_len": 512, "num_gpu_blocks_override": 1024}
        return LLM(tiny_folder(name), **{**defaults, **options})

    return make
