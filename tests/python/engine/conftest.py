from __future__ import annotations

from collections.abc import Callable

import pytest
from engine.scripted import Scripted, scripted_tokenizer

from octavo.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return scripted_tokenizer(tmp_path_factory.mktemp("tokenizer"))


# The core's own guesses, from what these scripts repeat.
GUESSES = {"max_draft_tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
WAYS: dict[str, tuple[bool, dict[str, int]]] = {
    "at-once": (False, {}),
    "one-step-ahead": (True, {}),
    "with-guesses": (False, GUESSES),
    "ahead-with-guesses": (True, GUESSES),
}


@pytest.fixture(params=WAYS)
def scripted(tokenizer: Tokenizer, request: pytest.FixtureRequest) -> Callable[..., Scripted]:
    """Returns a function: scripts by prompt, core options -> an engine that follows them."""

    def make(texts: dict[str, str] | None = None, **options: object) -> Scripted:
        late, guesses = WAYS[request.param]
        return Scripted(tokenizer, texts or {}, late=late, **{**guesses, **options})

    return make
