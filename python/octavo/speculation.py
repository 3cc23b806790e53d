"""`speculative_config`: who guesses the tokens that a step then verifies. Names are vLLM's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import did_you_mean, invalid

METHODS = ("ngram",)
MAX_DRAFT_TOKENS = 63
MAX_LOOKUP = 64
_KEYS = ("method", "num_speculative_tokens", "prompt_lookup_min", "prompt_lookup_max")
_DEFAULT_LOOKUP = 5


@dataclass(frozen=True)
class Speculation:
    """The parsed option; all zero: no guesses.

    "ngram" looks where the last `lookup_min` to `lookup_max` tokens of a request stood before, in its prompt
    or its output, and guesses that the same follows.
    """

    num_tokens: int = 0  # drafts in one step of a request
    lookup_min: int = 0
    lookup_max: int = 0


def parse_speculation(given: Mapping[str, Any] | None) -> Speculation:
    """Raises ValueError for an unknown key or method, with those that there are, and for a bad number."""
    if given is None:
        return Speculation()
    if not isinstance(given, Mapping):
        remedy = 'use a mapping such as {"method": "ngram", "num_speculative_tokens": 4}'
        raise invalid("speculative_config", given, remedy)
    for key in given:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS)
            raise ValueError(
                f"speculative_config has the unknown key {key!r}{hint}; the keys are {', '.join(_KEYS)}"
            )
    if given.get("method") not in METHODS:
        raise invalid("speculative_config: method", given.get("method"), f"use one of {', '.join(METHODS)}")
    count = _count(given, "num_speculative_tokens", 1, MAX_DRAFT_TOKENS)
    if count is None:
        raise invalid("speculative_config: num_speculative_tokens", None, "say how many to guess, such as 4")
    shortest = _count(given, "prompt_lookup_min", 1, MAX_LOOKUP)
    longest = _count(given, "prompt_lookup_max", 1, MAX_LOOKUP)
    # As in vLLM: one of them alone stands for both.
    if shortest is None:
        shortest = _DEFAULT_LOOKUP if longest is None else longest
    if longest is None:
        longest = shortest
    if shortest > longest:
        raise invalid(
            "speculative_config: prompt_lookup_min", shortest, f"use at most prompt_lookup_max={longest}"
        )
    return Speculation(count, shortest, longest)


def _count(given: Mapping[str, Any], key: str, low: int, high: int) -> int | None:
    value = given.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(f"speculative_config: {key}", value, f"use an integer from {low} to {high}")
    return value
