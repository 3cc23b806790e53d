from __future__ import annotations

from collections.abc import Callable

import pytest
from engine.scripted import Scripted, scripted_tokenizer

from octavo.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return scripted_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(params=[False, True], ids=["at-once", "one-step-ahead"])
def scripted(tokenizer: Tokenizer, request: pytest.FixtureRequest) -> Callable[..., Scripted]:
    """Returns a function: scripts by prompt, core options -> an engine that follows them."""

    def make(texts: dict[str, str] | None = None, **options: object) -> Scripted:
        return Scripted(tokenizer, texts or {}, late=request.param, **options)

    return make
