"""Prompts as users write them, checked and turned into token ids. Nothing malformed gets past this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import shown
from octavo.hf_config import DecoderStart
from octavo.media.audio import AudioInput
from octavo.media.item import MediaItem
from octavo.prompts import KvRetention
from octavo.sampling_params import SamplingParams
from octavo.text.tokenizer import Tokenizer

# No vocabulary in use has a token of more characters; a longer text is refused before time is spent on it.
_MAX_CHARS_PER_TOKEN = 256
_MAX_SALT_CHARS = 256
_KEYS = frozenset({"prompt", "prompt_token_ids", "cache_salt", "kv_retention", "multi_modal_data"})


@dataclass(frozen=True, slots=True)
class Prompt:
    """A checked prompt: its text where it came as text, and its token ids, int32 [prompt tokens]."""

    text: str | None
    token_ids: npt.NDArray[np.int32]
    cache_salt: str = ""
    kv_retention: KvRetention | None = None
    items: tuple[MediaItem, ...] = ()  # for the model's encoder


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a prompt brings, before it is tokenized: `ids` count where both are given."""

    text: str | None = None
    ids: Any = None
    salt: str = ""
    retention: Any = None
    media: Any = None


def as_prompt_list(prompts: Any) -> list[Any]:
    """One prompt of any form, or a sequence of them, as a list. Raises TypeError for anything else."""
    if isinstance(prompts, (str, Mapping)) or _is_token_ids(prompts):
        return [prompts]
    if isinstance(prompts, Sequence) and not isinstance(prompts, (bytes, bytearray)):
        return list(prompts)
    raise TypeError(f"prompts must be a string, a mapping, token ids or a list of these, {_not(prompts)}")


def _is_token_ids(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray)) or not value:
        return False
    return hasattr(value[0], "__index__") or isinstance(value[0], (float, bool))


def _not(value: Any) -> str:
    return f"not {type(value).__name__}"


class InputProcessor:
    """Checks prompts against one model's vocabulary and context. `tokenizer` None: token ids only."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        *,
        max_model_len: int,
        vocab_size: int,
        start: DecoderStart | None = None,
        audio: AudioInput | None = None,
    ) -> None:
        """`start` and `audio`: of a model with an encoder, both or neither."""
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        self._start = start
        self._audio = audio

    def prepare(self, prompts: Sequence[Any], params: Sequence[SamplingParams]) -> list[Prompt]:
        """Checks and tokenizes, all texts at once. Errors name the prompt's index where there are several."""
        where = [f"prompt {i}" if len(prompts) > 1 else "prompt" for i in range(len(prompts))]
        parts = [self._split(prompt, name) for prompt, name in zip(prompts, where)]
        texts = [i for i, part in enumerate(parts) if part.ids is None]
        encoded = dict(
            zip(texts, self._encode([parts[i].text or "" for i in texts], [where[i] for i in texts]))
        )
        result = []
        for i, part in enumerate(parts):
            from_text = part.ids is None
            token_ids = self._check(
                encoded[i] if from_text else part.ids, params[i], where[i], from_text=from_text
            )
            if part.retention is not None:
                _check_retention(part.retention, len(token_ids), where[i])
            items = self._media(part.media, where[i])
            result.append(Prompt(part.text, token_ids, part.salt, part.retention, items))
        return result

    def _split(self, prompt: Any, where: str) -> _Parts:
        if isinstance(prompt, str):
            return _Parts(self._checked_text(prompt, where))
        if not isinstance(prompt, Mapping):
            if isinstance(prompt, np.ndarray) or _is_token_ids(prompt):
                return _Parts(ids=prompt)
            if isinstance(prompt, Sequence) and not prompt:
                raise ValueError(f"{where} is empty; give at least one token")
            raise TypeError(f"{where} must be a string, a mapping or a list of token ids, {_not(prompt)}")
        unknown = sorted(str(key) for key in prompt if key not in _KEYS)
        if unknown:
            known = ", ".join(sorted(_KEYS))
            raise ValueError(f"{where} has the unknown key {shown(unknown[0])}; use {known}")
        salt = prompt.get("cache_salt") or ""
        if not isinstance(salt, str) or len(salt) > _MAX_SALT_CHARS:
            raise ValueError(f"{where}: cache_salt must be a string of at most {_MAX_SALT_CHARS} characters")
        retention, media = prompt.get("kv_retention"), prompt.get("multi_modal_data")
        text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        if ids is not None:
            # vLLM passes the text along with its ids; the ids count.
            return _Parts(text if isinstance(text, str) else None, ids, salt, retention, media)
        if media is not None and self._start is not None and (text is None or text == ""):
            return _Parts(None, self._default_prompt(self._start, where), salt, retention, media)
        if not isinstance(text, str):
            raise ValueError(f"{where} needs 'prompt' (a string) or 'prompt_token_ids' (a list of integers)")
        return _Parts(self._checked_text(text, where), None, salt, retention, media)

    def _default_prompt(self, start: DecoderStart, where: str) -> tuple[int, ...]:
        if start.prompt is None:
            raise ValueError(
                f"{where} has audio alone, and this model has to be told the language and the task: add "
                "'prompt', for example '<|startoftranscript|><|en|><|transcribe|><|notimestamps|>'"
            )
        return start.prompt

    def _media(self, data: Any, where: str) -> tuple[MediaItem, ...]:
        if self._audio is not None:
            return self._audio.items(data, where)
        if data:
            raise ValueError(
                f"{where}: multi_modal_data is not valid: this model takes text alone; leave it out, "
                "or load one that hears, such as Whisper"
            )
        return ()

    def _checked_text(self, text: str, where: str) -> str:
        if self._tokenizer is None:
            raise ValueError(f"{where} is text, but this engine has no tokenizer; give prompt_token_ids")
        limit = self._max_model_len * _MAX_CHARS_PER_TOKEN
        if len(text) > limit:
            raise ValueError(
                f"{self._limit_words()} {where} has {len(text)} characters; shorten it or raise max_model_len"
            )
        return text

    def _limit_words(self) -> str:
        # Clients look for these words: they are the ones OpenAI's and vLLM's errors have.
        length = self._max_model_len
        return f"This model's maximum context length is {length} tokens. However, your prompt is too long:"

    def _encode(self, texts: list[str], where: list[str]) -> list[list[int]]:
        if not texts:
            return []
        assert self._tokenizer is not None
        for text, name in zip(texts, where):
            if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
                raise ValueError(
                    f"{name} has a lone surrogate, which is no text; encode it as valid Unicode first"
                )
        # A decoder's prompt is written out, special tokens and all, as in vLLM.
        return self._tokenizer.encode_batch(texts, add_special_tokens=self._start is None)

    def _check(
        self, ids: Any, params: SamplingParams, where: str, *, from_text: bool
    ) -> npt.NDArray[np.int32]:
        array = _to_array(ids, where)
        if params.truncate_prompt_tokens is not None:
            array = array[-self._kept(params) :]
        array = self._started(array)
        if not len(array):
            what = "has no tokens" if from_text else "is empty"
            raise ValueError(f"{where} {what}; give at least one token")
        if len(array) >= self._max_model_len:
            raise ValueError(
                f"{self._limit_words()} {where} has {len(array)} tokens and one must be left to generate; "
                f"shorten it, set truncate_prompt_tokens or raise max_model_len"
            )
        bad = (array < 0) | (array >= self._vocab_size)
        if bad.any():
            i = int(np.argmax(bad))
            raise ValueError(
                f"{where}: token id {int(array[i])} at position {i} is out of range; "
                f"ids of this model lie in [0, {self._vocab_size})"
            )
        return array.astype(np.int32)

    def _started(self, array: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """With the token in front that every output of a decoder begins with, unless it has one."""
        if self._start is None or self._start.token_id in array:
            return array
        return np.concatenate([np.array([self._start.token_id], np.int64), array])

    def _kept(self, params: SamplingParams) -> int:
        wanted = params.truncate_prompt_tokens or 0
        most = self._max_model_len - 1
        if wanted > most:
            raise ValueError(f"truncate_prompt_tokens={wanted} is not valid: use at most {most}")
        if wanted > 0:
            return wanted
        return max(self._max_model_len - (params.max_tokens or 1), 1)


def _check_retention(retention: Any, prompt_tokens: int, where: str) -> None:
    if not isinstance(retention, KvRetention):
        raise ValueError(f"{where}: kv_retention must be an octavo.KvRetention, {_not(retention)}")
    try:
        retention.spans(prompt_tokens)
    except ValueError as error:
        raise ValueError(f"{where}: kv_retention: {error}") from error


def _is_integer(item: Any) -> bool:
    return hasattr(item, "__index__") and not isinstance(item, bool)


def _to_array(ids: Any, where: str) -> npt.NDArray[np.int64]:
    if isinstance(ids, (str, bytes, Mapping)) or not hasattr(ids, "__len__"):
        raise ValueError(f"{where}: prompt_token_ids must be a list of integers, {_not(ids)}")
    try:
        array = np.asarray(ids)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{where}: prompt_token_ids must be a flat list of integers: {error}") from error
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        wrong = next((i for i, item in enumerate(ids) if not _is_integer(item)), 0)
        raise ValueError(
            f"{where}: prompt_token_ids must be a flat list of integers; the one at position {wrong} is "
            f"{shown(ids[wrong])}"
        )
    # What does not fit int64 is out of every vocabulary.
    return (
        np.where(array > np.iinfo(np.int64).max, -1, array).astype(np.int64)
        if array.dtype.kind == "u"
        else array
    )
