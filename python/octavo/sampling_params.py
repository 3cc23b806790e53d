"""SamplingParams: how a request samples and stops, with vLLM's names, defaults and meaning.

Everything that needs no model is checked here, token ids against the vocabulary when the request is added.
Each error names the field, its value and the remedy. The comment beside a field is its help on the command
line.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import did_you_mean, invalid, shown

MAX_N = 128
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_TOKENS = 100
MAX_LOGIT_BIAS = 300
MAX_BAD_WORDS = 128
MAX_LOGPROBS = 20  # unless the engine was made with a larger max_logprobs
_MAX_BAD_WORD_CHARS = 1024
_INT32_MAX = 2**31 - 1
_GREEDY_BELOW = 1e-5
_FLAGS = (
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
)


class RequestOutputKind(enum.Enum):
    """What a RequestOutput holds: everything so far, what is new, or everything and only at the end."""

    CUMULATIVE = "cumulative"
    DELTA = "delta"
    FINAL_ONLY = "final_only"


@dataclass(kw_only=True)
class SamplingParams:
    """How one request samples and stops. Raises ValueError for a bad value, TypeError for an unknown name."""

    n: int = 1  # samples of the prompt
    presence_penalty: float = 0.0  # subtracted from the logit of each token already generated, -2 to 2
    frequency_penalty: float = 0.0  # the same, for each time it was generated, -2 to 2
    repetition_penalty: float = 1.0  # divides the positive logits of tokens in the prompt or output
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # keep the likeliest tokens that make up this share
    top_k: int = 0  # keep this many tokens; 0 or -1: all
    min_p: float = 0.0  # keep tokens at least this likely relative to the likeliest
    seed: int | None = None  # the same tokens every time, whatever else runs
    stop: str | Sequence[str] | None = None  # texts that end the output
    stop_token_ids: Sequence[int] | None = None  # tokens that end the output
    ignore_eos: bool = False  # go on after the end-of-sequence token
    max_tokens: int | None = 16  # tokens to generate; None: what is left of the context
    min_tokens: int = 0  # no stop token, stop text or end of sequence before this many
    logprobs: int | None = None  # log-probabilities of this many likeliest tokens; -1: all
    prompt_logprobs: int | None = None  # the same for each token of the prompt
    detokenize: bool = True  # produce text, not only token ids
    skip_special_tokens: bool = True  # leave special tokens out of the text
    spaces_between_special_tokens: bool = True  # where the tokenizer joins tokens with spaces
    include_stop_str_in_output: bool = False  # keep the stop text, or the stop token's text, in the output
    bad_words: Sequence[str] | None = None  # texts that must not be generated
    allowed_token_ids: Sequence[int] | None = None  # nothing but these tokens
    logit_bias: Mapping[int, float] | None = None  # added to the logit of each token named, -100 to 100
    truncate_prompt_tokens: int | None = None  # keep the last tokens of the prompt; -1: as many as fit
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __new__(cls, *_: object, **fields: object) -> SamplingParams:
        # The generated __init__ would refuse an unknown name too, but without saying which one was meant.
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise TypeError(f"SamplingParams has no {shown(name)}{did_you_mean(name, known)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self.validate()

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < _GREEDY_BELOW

    def validate(self) -> None:
        """Checks every field and makes it plain: a stop string becomes a list, seed=-1 becomes None."""
        self._check_sampling()
        self._check_lengths()
        self._check_token_lists()
        self.stop = _texts("stop", self.stop, MAX_STOPS)
        for text in self.stop:
            if (size := len(text.encode(errors="replace"))) > MAX_STOP_BYTES:
                raise invalid("stop", f"{text[:32]}...", f"it has {size} bytes, use at most {MAX_STOP_BYTES}")
        self.bad_words = _texts("bad_words", self.bad_words, MAX_BAD_WORDS)
        for text in self.bad_words:
            if len(text) > _MAX_BAD_WORD_CHARS:
                remedy = f"it has {len(text)} characters, use at most {_MAX_BAD_WORD_CHARS}"
                raise invalid("bad_words", f"{text[:32]}...", remedy)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise invalid(name, getattr(self, name), "use True or False")
        if not isinstance(self.output_kind, RequestOutputKind):
            raise invalid("output_kind", self.output_kind, "use a RequestOutputKind")
        if self.stop and not self.detokenize:
            raise invalid("stop", list(self.stop), "stop strings need detokenize=True; or use stop_token_ids")

    def _check_sampling(self) -> None:
        self.n = _integer("n", self.n, 1, MAX_N)
        for name, low, high, note in (
            ("presence_penalty", -2.0, 2.0, ""),
            ("frequency_penalty", -2.0, 2.0, ""),
            ("repetition_penalty", 0.0, 100.0, ", above 0; 1 is none"),
            ("temperature", 0.0, 100.0, "; 0 is greedy"),
            ("top_p", 0.0, 1.0, ", above 0; 1 is all tokens"),
            ("min_p", 0.0, 1.0, "; 0 is off"),
        ):
            value = _number(name, getattr(self, name), low, high, note)
            if value == 0 and note.startswith(", above 0"):
                raise invalid(name, value, f"use a number from {low:g} to {high:g}{note}")
            setattr(self, name, value)
        self.top_k = max(_integer("top_k", self.top_k, -1, _INT32_MAX), 0)
        if self.seed is not None:
            seed = _integer("seed", self.seed, -(2**63), 2**64 - 1)
            self.seed = None if seed == -1 else seed

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            self.max_tokens = _integer("max_tokens", self.max_tokens, 1, _INT32_MAX)
        most = _INT32_MAX if self.max_tokens is None else self.max_tokens
        self.min_tokens = _integer("min_tokens", self.min_tokens, 0, _INT32_MAX)
        if self.min_tokens > most:
            raise invalid("min_tokens", self.min_tokens, f"use at most max_tokens={most}")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if isinstance(value, bool):
                # OpenAI's chat API has a flag of this name; vLLM reads True as 1.
                value = 1 if value else None
            if value is not None:
                setattr(self, name, _integer(name, value, -1, _INT32_MAX))
            else:
                setattr(self, name, None)
        if self.truncate_prompt_tokens is not None:
            value = _integer("truncate_prompt_tokens", self.truncate_prompt_tokens, -1, _INT32_MAX)
            if value == 0:
                raise invalid("truncate_prompt_tokens", 0, "use a positive number, or -1 for as many as fit")

    def _check_token_lists(self) -> None:
        self.stop_token_ids = _token_ids("stop_token_ids", self.stop_token_ids) or []
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            count = len(self.stop_token_ids)
            raise invalid("stop_token_ids", f"{count} entries", f"use at most {MAX_STOP_TOKENS}")
        self.allowed_token_ids = _token_ids("allowed_token_ids", self.allowed_token_ids)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise invalid("allowed_token_ids", [], "it would allow no token; use None to allow all")
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            raise invalid("logit_bias", self.logit_bias, "use a mapping from token id to a number")
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise invalid("logit_bias", f"{len(self.logit_bias)} entries", f"use at most {MAX_LOGIT_BIAS}")
        bias = {}
        for token, value in self.logit_bias.items():
            # OpenAI's JSON has the ids as text.
            token_id = int(token) if isinstance(token, str) and token.isdecimal() else token
            token_id = _integer("logit_bias", token_id, 0, _INT32_MAX)
            bias[token_id] = _number(f"logit_bias[{token_id}]", value, -100.0, 100.0, "")
        self.logit_bias = bias


def _number(name: str, value: Any, low: float, high: float, note: str) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, str):
        raise invalid(name, value, f"use a number from {low:g} to {high:g}{note}")
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError) as error:
        raise invalid(name, value, f"use a number from {low:g} to {high:g}{note}") from error
    if not math.isfinite(number) or not low <= number <= high:
        raise invalid(name, number, f"use a number from {low:g} to {high:g}{note}")
    return number


def _integer(name: str, value: Any, low: int, high: int) -> int:
    # numpy's integers have __index__; bool has it too, but True is no count.
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise invalid(name, value, f"use an integer from {low} to {high}")
    number = int(value.__index__())
    if not low <= number <= high:
        raise invalid(name, number, f"use an integer from {low} to {high}")
    return number


def _texts(name: str, value: Any, limit: int) -> list[str]:
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, bytes) or not isinstance(texts, Sequence):
        raise invalid(name, value, "use a string or a list of strings")
    if len(texts) > limit:
        raise invalid(name, f"{len(texts)} entries", f"use at most {limit}")
    for text in texts:
        if not isinstance(text, str):
            raise invalid(name, text, "use a string or a list of strings")
        if not text:
            raise invalid(name, text, "an empty string matches everywhere; leave it out")
    return list(texts)


def _token_ids(name: str, value: Any) -> list[int] | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise invalid(name, value, "use a list of token ids")
    return [_integer(name, token_id, 0, _INT32_MAX) for token_id in value]
