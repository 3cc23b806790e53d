"""Public sampling parameters -> the core's: text becomes token ids, defaults become numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo import core
from octavo.errors import invalid
from octavo.hf_config import DecoderStart
from octavo.sampling_params import SamplingParams
from octavo.text.tokenizer import Tokenizer

_MASK = 2**64 - 1
_SUPPRESS = -100.0  # the most that a bias may take away; logits of such models stay within 50


class ParamsTranslator:
    """Makes the core's parameters for one engine's model.

    `max_logprobs` is the most log-probabilities a request may ask for, -1: no limit. Requests without a
    seed get one from `seed` and their order of arrival, so that a whole job can be repeated.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        *,
        vocab_size: int,
        max_model_len: int,
        eos_token_ids: tuple[int, ...],
        max_logprobs: int,
        seed: int,
        start: DecoderStart | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        own = tokenizer.eos_token_id if tokenizer is not None else None
        if own is None and eos_token_ids:
            own = eos_token_ids[0]
        # As in vLLM: the tokenizer's EOS ends a request silently, further ones (generation_config.json) do
        # so as stop tokens, which stop_reason names.
        self._eos = [own] if own is not None and own < vocab_size else []
        self._more_eos = [token for token in eos_token_ids if token != own]
        self._max_logprobs = max_logprobs
        self._seed = seed
        self._start = start
        self._arrivals = 0
        self._bad_words: dict[str, list[list[int]]] = {}

    def translate(self, params: SamplingParams, *, prompt: Sequence[int], index: int) -> Any:
        """The core's parameters of sample `index` (0 to n-1). ValueError for what this model cannot do."""
        native = core.SamplingParams()
        room = self._max_model_len - len(prompt)
        native.max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        native.min_tokens = min(params.min_tokens, native.max_tokens)
        native.temperature = 0.0 if params.is_greedy else params.temperature
        native.top_k = params.top_k
        native.top_p = params.top_p
        native.min_p = params.min_p
        native.presence_penalty = params.presence_penalty
        native.frequency_penalty = params.frequency_penalty
        native.repetition_penalty = params.repetition_penalty
        native.seed = self._seed_of(params, index)
        native.ignore_eos = params.ignore_eos
        native.eos_token_ids = self._eos
        native.stop_token_ids = self._stop_tokens(params)
        bias = self._suppression(native, params, prompt)
        if bias:
            native.logit_bias = list(bias.items())
        if params.bad_words:
            native.bad_words = [ids for word in params.bad_words for ids in self._bad_word(word)]
        if params.allowed_token_ids is not None:
            native.allowed_token_ids = list(params.allowed_token_ids)
        native.num_logprobs = self._count("logprobs", params.logprobs)
        # The samples of one request share the prompt, and so its log-probabilities.
        native.num_prompt_logprobs = (
            self._count("prompt_logprobs", params.prompt_logprobs) if index == 0 else -1
        )
        return native

    def _suppression(
        self, native: Any, params: SamplingParams, prompt: Sequence[int]
    ) -> Mapping[int, float] | None:
        """The bias of the request with what its model suppresses, which a bias of the request's own lifts.

        Whoever ends a prompt at the start leaves language and task to a multilingual model, and their tokens
        are among those that generation_config.json suppresses.
        """
        start, own = self._start, params.logit_bias or {}
        if start is None or (start.multilingual and prompt[-1] == start.token_id):
            return params.logit_bias
        native.begin_suppress_tokens = [token for token in start.begin_suppressed if token not in own]
        return {**dict.fromkeys(start.suppressed, _SUPPRESS), **own}

    def _seed_of(self, params: SamplingParams, index: int) -> int:
        if params.seed is not None:
            return (params.seed + index) & _MASK
        self._arrivals += 1
        # splitmix64: neighbouring arrivals get unrelated seeds.
        mixed = (self._seed + self._arrivals * 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)

    def _stop_tokens(self, params: SamplingParams) -> list[int]:
        tokens = list(params.stop_token_ids or ())
        if not params.ignore_eos:
            tokens.extend(token for token in self._more_eos if token not in tokens)
        return tokens

    def _count(self, name: str, value: int | None) -> int:
        if value is None:
            return -1
        most = self._vocab_size if self._max_logprobs < 0 else min(self._max_logprobs, self._vocab_size)
        wanted = self._vocab_size if value == -1 else value
        if wanted > most:
            raise invalid(name, value, f"use at most {most}, or make the engine with a larger max_logprobs")
        return wanted

    def _bad_word(self, word: str) -> list[list[int]]:
        """The token sequences that spell a word at the start of a text and after a space."""
        if self._tokenizer is None:
            raise invalid("bad_words", word, "it needs a tokenizer; use logit_bias with token ids")
        if word not in self._bad_words:
            if len(self._bad_words) > 1024:
                self._bad_words.clear()
            stem = word.lstrip()
            plain = self._tokenizer.encode(stem or word, add_special_tokens=False)
            spaced = self._tokenizer.encode(" " + stem, add_special_tokens=False)
            sequences = [plain] if plain else []
            # A spaced form of other length is the plain one after a separate space token: already covered.
            if spaced != plain and len(spaced) == len(plain) and spaced:
                sequences.append(spaced)
            self._bad_words[word] = sequences
        return self._bad_words[word]
