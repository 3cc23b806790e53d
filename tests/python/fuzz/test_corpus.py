"""Every input that a fuzzer or a person has found interesting, once through its target, without a fuzzer."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fuzz_targets import TARGETS, run

CORPUS = Path(__file__).resolve().parents[2] / "fuzz" / "corpus"
INPUTS = [path for name in TARGETS for path in sorted((CORPUS / name).iterdir())]
MAX_SECONDS = 10  # of a slow machine; a template's own deadline is one second


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_of_the_corpus_is_read_or_refused_as_promised(path: Path) -> None:
    started = time.monotonic()
    run(path.parent.name, path.read_bytes())
    assert time.monotonic() - started < MAX_SECONDS


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_accepts_some_of_its_corpus_and_refuses_some(name: str) -> None:
    """A target that refuses everything would find nothing behind the first check."""
    accepted = [run(name, path.read_bytes()) for path in sorted((CORPUS / name).iterdir())]
    assert any(accepted) and not all(accepted)
