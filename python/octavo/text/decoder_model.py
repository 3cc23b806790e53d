"""What a tokenizer's decoder does to one token, as bytes, so that text can be built token by token.

A `tokenizers` decoder turns a whole list of tokens into text. The decoders of language models are, with few
exceptions, a map from each token to bytes followed by one UTF-8 decoding, and a rule for the very first
token. This module recognises those from the decoder's JSON; any other decoder gives None and the caller
compares decoded texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level BPE vocabularies (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return alphabet


_BYTE_OF = _byte_level_alphabet()


@dataclass(frozen=True, kw_only=True)
class DecoderModel:
    """One token's bytes and the rule for the start of a text."""

    byte_level: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    # Metaspace's mark for a space, and whether the first token of a text loses it.
    space_mark: str = ""
    drop_first_mark: bool = False
    # Up to this many leading `strip_char` of a whole text disappear.
    strip_left: int = 0
    strip_char: str = " "

    @property
    def has_first_rule(self) -> bool:
        """Whether the first visible token of a text is treated differently from the others."""
        return self.strip_left > 0 or self.drop_first_mark

    def to_bytes(self, token: str, *, first: bool = False) -> bytes:
        """The bytes that `token` contributes; `first` where no visible token stands before it."""
        if self.byte_level:
            values = [_BYTE_OF.get(char, -1) for char in token]
            # A token with any character outside the alphabet (an added token with a space) stands for itself.
            return token.encode() if -1 in values else bytes(values)
        for old, new in self.replacements:
            token = token.replace(old, new)
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        if self.space_mark:
            token = token.replace(self.space_mark, "" if first and self.drop_first_mark else " ")
        return token.encode()


def check_decoder(decoder: dict[str, Any] | None) -> None:
    """Raises ValueError for a decoder that the `tokenizers` library panics in: one that strips the end of a
    token, met with an empty token, which other stages make.
    """
    left = [] if decoder is None else [decoder]
    while left:
        stage = left.pop()
        left.extend(stage.get("decoders", []))
        if stage.get("type") == "Strip" and stage.get("stop"):
            raise ValueError("its decoder strips characters at the end of tokens, which is not supported")


def model_decoder(decoder: dict[str, Any] | None) -> DecoderModel | None:
    """The model of a decoder given as tokenizer.json's object, or None where its form is unknown."""
    if decoder is None:
        return None
    stages = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    fields: dict[str, Any] = {}
    fused = False
    for stage in stages:
        kind = stage.get("type")
        if kind == "Fuse":
            fused = True
        elif kind == "Strip":
            # Before Fuse the strip would apply to every token, and a trailing strip needs the end of the
            # text.
            if not fused or stage.get("stop") or "strip_left" in fields:
                return None
            fields.update(strip_left=int(stage.get("start", 0)), strip_char=stage.get("content", " "))
        elif fused or "space_mark" in fields or "byte_level" in fields:
            return None
        elif kind == "ByteLevel":
            if fields:
                return None
            fields["byte_level"] = True
        elif kind == "Replace":
            pattern = stage.get("pattern", {}).get("String")
            if pattern is None or fields.get("byte_fallback"):
                return None
            fields["replacements"] = (*fields.get("replacements", ()), (pattern, stage.get("content", "")))
        elif kind == "ByteFallback":
            fields["byte_fallback"] = True
        elif kind == "Metaspace":
            scheme = stage.get("prepend_scheme")
            always = stage.get("add_prefix_space", True) if scheme is None else scheme != "never"
            fields.update(space_mark=stage.get("replacement", "\u2581"), drop_first_mark=bool(always))
        else:
            return None
    return DecoderModel(**fields) if fields else None
