"""What may be given as a prompt beside a plain string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class _Options(TypedDict, total=False):
    # Requests with different salts share no cached prefix.
    cache_salt: str


class TextPrompt(_Options):
    """A prompt as text, tokenized by the engine."""

    prompt: str


class _Text(TypedDict, total=False):
    prompt: str


class TokensPrompt(_Options, _Text):
    """A prompt as token ids, taken as they are; `prompt` is only handed through to the output."""

    prompt_token_ids: Sequence[int]


PromptType = str | Sequence[int] | TextPrompt | TokensPrompt
