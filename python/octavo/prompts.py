"""What may be given as a prompt beside a plain string."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from octavo.errors import invalid

ORDINARY_PRIORITY = 35
MAX_PRIORITY = 100
MAX_RANGES = 64
MAX_DURATION_MS = 10**9


@dataclass(frozen=True, kw_only=True)
class KvRange:
    """Tokens `begin` to `end` (exclusive; None: the prompt's end) of a prompt, and how long to keep their KV.

    Of cached blocks that nobody uses, those of lower `priority` are given up first: 0 to 100, 35 is what
    blocks have that nobody spoke for, 100 is pinned. `duration_ms` after the request has ended they are
    ordinary again; None: they stay as they are.
    """

    begin: int = 0
    end: int | None = None
    priority: int = ORDINARY_PRIORITY
    duration_ms: int | None = None

    def __post_init__(self) -> None:
        _integer("begin", self.begin, 0, 2**31 - 1)
        if self.end is not None:
            _integer("end", self.end, self.begin + 1, 2**31 - 1)
        _wish("priority", self.priority, "duration_ms", self.duration_ms)


@dataclass(frozen=True, kw_only=True)
class KvRetention:
    """How long the KV of one request is worth keeping: of ranges of its prompt, and of what it generates.

    Ranges rise and do not overlap. A block goes with the range that its first token lies in.
    """

    ranges: Sequence[KvRange] = ()
    decode_priority: int = ORDINARY_PRIORITY
    decode_duration_ms: int | None = None

    def __post_init__(self) -> None:
        if not all(isinstance(part, KvRange) for part in self.ranges):
            raise invalid("ranges", self.ranges, "use a list of octavo.KvRange")
        if len(self.ranges) > MAX_RANGES:
            raise invalid("ranges", f"{len(self.ranges)} entries", f"use at most {MAX_RANGES}")
        object.__setattr__(self, "ranges", tuple(self.ranges))
        for left, right in zip(self.ranges, self.ranges[1:]):
            if left.end is None or right.begin < left.end:
                raise invalid("begin", right.begin, "use rising ranges that do not overlap")
        _wish("decode_priority", self.decode_priority, "decode_duration_ms", self.decode_duration_ms)

    def spans(self, prompt_tokens: int) -> list[tuple[int, int, int, int]]:
        """(begin, end, priority, duration in ms or 0) of each range.

        Raises ValueError for a range that a prompt of that length does not have.
        """
        spans = []
        for part in self.ranges:
            end = prompt_tokens if part.end is None else part.end
            if not part.begin < end <= prompt_tokens:
                name = "end" if part.begin < prompt_tokens else "begin"
                remedy = f"the prompt has {prompt_tokens} tokens; use a range inside it"
                raise invalid(name, getattr(part, name), remedy)
            spans.append((part.begin, end, part.priority, part.duration_ms or 0))
        return spans


def _integer(field: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(field, value, f"use an integer from {low} to {high}")


def _wish(priority_field: str, priority: object, duration_field: str, duration: object) -> None:
    _integer(priority_field, priority, 0, MAX_PRIORITY)
    if duration is not None:
        _integer(duration_field, duration, 1, MAX_DURATION_MS)


class _Options(TypedDict, total=False):
    # Requests with different salts share no cached prefix.
    cache_salt: str
    # None: ordinary.
    kv_retention: KvRetention | None


class _Media(TypedDict, total=False):
    # By modality; {"audio": (samples, sampling_rate)} for a model that hears.
    multi_modal_data: Mapping[str, Any]


class TextPrompt(_Options, _Media):
    """A prompt as text, tokenized by the engine."""

    prompt: str


class _Text(TypedDict, total=False):
    prompt: str


class TokensPrompt(_Options, _Media, _Text):
    """A prompt as token ids, taken as they are; `prompt` is only handed through to the output."""

    prompt_token_ids: Sequence[int]


class MediaPrompt(_Options):
    """Audio alone, for a model of speech: how its output begins stands in generation_config.json."""

    multi_modal_data: Mapping[str, Any]


PromptType = str | Sequence[int] | TextPrompt | TokensPrompt | MediaPrompt
