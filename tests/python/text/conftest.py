from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from text.tokenizer_zoo import save

from octavo.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def load_kind(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    """Loads one kind of the zoo, once."""

    @cache
    def load(kind: str) -> Tokenizer:
        return load_tokenizer(save(tmp_path_factory.mktemp(kind), kind))

    return load


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a tokenizer's folder with overridden config entries."""

    def write(kind: str, **config: object) -> Path:
        return save(tmp_path_factory.mktemp(kind), kind, **config)

    return write
