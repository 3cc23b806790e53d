"""Encoder-decoder models of speech in config.json and generation_config.json: Whisper's spelling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.hf.reader import Reader

# Each is an edit of a row's logits, of which the core has room for so many.
_MAX_SUPPRESSED = {"suppress_tokens": 256, "begin_suppress_tokens": 64}


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """An encoder whose output every decoder layer attends to. It is as wide as the decoder.

    It takes `mel_bins` x `frames` features of audio, always so many, and yields `length` positions: the
    second of its two convolutions has a stride of two.
    """

    modality: str = "audio"
    num_layers: int
    num_heads: int
    intermediate_size: int
    mel_bins: int
    length: int

    @property
    def frames(self) -> int:
        """Feature frames of one input."""
        return 2 * self.length

    def parameters(self, hidden: int) -> int:
        """Elements of the encoder's weights."""
        convolutions = 3 * hidden * (self.mel_bins + hidden) + 2 * hidden
        layer = attention_parameters(hidden) + mlp_parameters(hidden, self.intermediate_size) + 4 * hidden
        return convolutions + self.length * hidden + self.num_layers * layer + 2 * hidden

    def activations(self, hidden: int) -> int:
        """Elements that encoding one input holds at once: in the convolutions, or in the widest layer."""
        convolutions = self.frames * (self.mel_bins + 2 * hidden) + self.length * hidden
        layer = self.length * (3 * hidden + max(5 * hidden, 2 * self.intermediate_size))
        return max(convolutions, layer)


@dataclass(frozen=True, kw_only=True)
class DecoderStart:
    """How a decoder's output begins, and what it may not hold."""

    token_id: int  # in front of every prompt
    prompt: tuple[int, ...] | None  # where none is given; None: the language has to be chosen first
    multilingual: bool = False
    suppressed: tuple[int, ...] = ()  # never generated
    begin_suppressed: tuple[int, ...] = ()  # not the first to be generated


def attention_parameters(hidden: int) -> int:
    """Elements of one attention: four square projections, of which the keys' has no bias."""
    return 4 * hidden * hidden + 3 * hidden


def mlp_parameters(hidden: int, inner: int) -> int:
    """Elements of two projections with biases."""
    return 2 * hidden * inner + inner + hidden


def encoder_spec(config: Reader, hidden: int) -> EncoderSpec:
    """Return the encoder that config.json describes. Raises ModelError for what cannot be."""
    heads = config.integer("encoder_attention_heads", high=1 << 16)
    if hidden % heads:
        raise config.error("encoder_attention_heads", heads, f"it must divide d_model={hidden}")
    return EncoderSpec(
        num_layers=config.integer("encoder_layers", high=1 << 12),
        num_heads=heads,
        intermediate_size=config.integer("encoder_ffn_dim"),
        mel_bins=config.integer("num_mel_bins", high=1 << 12),
        length=config.integer("max_source_positions", high=1 << 16),
    )


def decoder_start(config: Reader, generation: Mapping[str, Any], vocab_size: int) -> DecoderStart:
    """Return how outputs begin, by generation_config.json or, for older folders, config.json."""
    both = Reader({**config.raw, **{k: v for k, v in generation.items() if v is not None}}, config.path)
    default = config.get("decoder_start_token_id")
    start = both.integer("decoder_start_token_id", default, low=0, high=vocab_size - 1)
    languages = both.get("lang_to_id", {})
    if not isinstance(languages, dict):
        raise both.error("lang_to_id", languages, "an object from language tokens to ids is expected")
    suppressed = _ids(both, "suppress_tokens", vocab_size)
    begin = _ids(both, "begin_suppress_tokens", vocab_size)
    prompt = _forced(both, start, vocab_size)
    if languages and (prompt is None or len(prompt) == 1):
        prompt = _of_language(both, start, languages)
    return DecoderStart(
        token_id=start,
        prompt=prompt,
        multilingual=bool(languages),
        suppressed=suppressed,
        begin_suppressed=begin,
    )


def _forced(both: Reader, start: int, vocab_size: int) -> tuple[int, ...] | None:
    """The start and what forced_decoder_ids puts behind it; None where that leaves a place open."""
    pairs = both.get("forced_decoder_ids", [])
    remedy = f"pairs of a rising position from 1 on and an id below {vocab_size} or null are expected"
    if not isinstance(pairs, list):
        raise both.error("forced_decoder_ids", pairs, remedy)
    prompt = [start]
    for place, pair in enumerate(pairs, 1):
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] != place:
            raise both.error("forced_decoder_ids", pairs, remedy)
        if pair[1] is None:
            return None
        if not _is_id(pair[1], vocab_size):
            raise both.error("forced_decoder_ids", pairs, remedy)
        prompt.append(pair[1])
    return tuple(prompt)


def _of_language(both: Reader, start: int, languages: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The prompt that `language` and `task` ask for; None without a language that the model names so."""
    language, tasks = both.get("language"), both.get("task_to_id", {})
    spoken = languages.get(language, languages.get(f"<|{language}|>")) if isinstance(language, str) else None
    task = tasks.get(both.get("task", "transcribe")) if isinstance(tasks, dict) else None
    plain = both.get("no_timestamps_token_id")
    if spoken is None:
        return None
    return tuple(token for token in (start, spoken, task, plain) if token is not None)


def _ids(both: Reader, key: str, vocab_size: int) -> tuple[int, ...]:
    found = both.get(key, [])
    if not isinstance(found, list) or not all(_is_id(token, vocab_size) for token in found):
        raise both.error(key, found, f"a list of token ids below vocab_size={vocab_size} is expected")
    if len(found) > _MAX_SUPPRESSED[key]:
        raise both.error(key, f"{len(found)} entries", f"at most {_MAX_SUPPRESSED[key]} are supported")
    return tuple(dict.fromkeys(found))


def _is_id(value: object, vocab_size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size
