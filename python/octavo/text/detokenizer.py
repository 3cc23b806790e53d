"""Incremental detokenization: token ids in, text out, exact for any sequence of bytes.

A token may end in the middle of a UTF-8 character. Such bytes are held until the character is complete or
certainly broken, so that no replacement character is printed for a character that merely spans two tokens.
The concatenation of all text given out is the UTF-8 decoding (errors replaced) of the tokens' bytes; the
cost per token is constant.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from octavo.text.stop_strings import StopMatcher
from octavo.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
# A decoder we cannot model may owe at most one UTF-8 character (four bytes) to the tokens behind it.
_MAX_HELD_TOKENS = 4
# Tokens of the prompt that give such a decoder its context.
_CONTEXT_TOKENS = 6

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class _TokenStream(Protocol):
    def push(self, token_id: int) -> str: ...
    def flush(self) -> str: ...


class _ByteStream:
    """Tokens whose bytes are known: a table look-up, and a UTF-8 decoder where a character is split."""

    __slots__ = ("_at_start", "_decoder", "_pending", "_pieces", "_skip_special", "_strip", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._pieces = tokenizer.pieces(skip_special_tokens=skip_special)
        self._decoder = _Utf8Decoder("replace")
        self._pending = False
        model = tokenizer.decoder_model
        assert model is not None
        self._at_start = model.has_first_rule and all(not self._pieces[token_id] for token_id in prompt)
        self._strip = model.strip_left

    def push(self, token_id: int) -> str:
        piece = self._pieces[token_id]
        if self._at_start and piece:
            piece = self._first(token_id)
        if isinstance(piece, str):
            if not self._pending or not piece:
                return piece
            piece = piece.encode()
        text = self._decoder.decode(piece)
        self._pending = bool(self._decoder.getstate()[0])
        return text

    def _first(self, token_id: int) -> str | bytes:
        piece = self._tokenizer.first_piece(token_id)
        model = self._tokenizer.decoder_model
        assert model is not None
        if isinstance(piece, bytes) or not self._strip:
            self._at_start = False
            return piece
        stripped = piece.lstrip(model.strip_char)
        taken = min(len(piece) - len(stripped), self._strip)
        self._strip -= taken
        self._at_start = not piece[taken:] and self._strip > 0
        return piece[taken:]

    def flush(self) -> str:
        self._pending = False
        return self._decoder.decode(b"", final=True)


class _DiffStream:
    """Any decoder: what the new token adds to the text of a short window of tokens."""

    __slots__ = ("_ids", "_last_added", "_read", "_skip_special", "_spaces", "_start", "_tokenizer")

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], *, skip_special: bool, spaces: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._spaces = spaces
        self._ids = [t for t in prompt[-_CONTEXT_TOKENS:] if self._visible(t)]
        self._start = 0
        self._read = len(self._ids)
        self._last_added = False

    def _visible(self, token_id: int) -> bool:
        if self._skip_special and self._tokenizer.is_special(token_id):
            return False
        return self._tokenizer.id_to_token(token_id) is not None

    def _new_text(self) -> str:
        before = self._tokenizer.decode(
            self._ids[self._start : self._read], skip_special_tokens=self._skip_special
        )
        after = self._tokenizer.decode(self._ids[self._start :], skip_special_tokens=self._skip_special)
        return after[len(before) :]

    def _advance(self) -> None:
        self._start, self._read = self._read, len(self._ids)

    def push(self, token_id: int) -> str:
        if not self._visible(token_id):
            return ""
        self._ids.append(token_id)
        added = not self._spaces and self._tokenizer.is_added(token_id)
        if added and self._last_added:
            self._advance()
            return self._tokenizer.id_to_token(token_id) or ""
        self._last_added = added
        text = self._new_text()
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._read < _MAX_HELD_TOKENS:
            return ""
        self._advance()
        return text

    def flush(self) -> str:
        text = self._new_text() if self._read < len(self._ids) else ""
        self._advance()
        return text


class Detokenizer:
    """The text of one growing output: UTF-8 safe, stop strings applied.

    `prompt_token_ids` only decides whether the output begins a text (its leading space may then disappear);
    no text of the prompt is ever given out. Not safe for use from two threads at once.
    """

    __slots__ = ("_matcher", "_min_tokens", "_parts", "_stream", "_taken", "_tokens")

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._stream: _TokenStream
        if tokenizer.decoder_model is not None:
            self._stream = _ByteStream(tokenizer, prompt_token_ids, skip_special=skip_special_tokens)
        else:
            self._stream = _DiffStream(
                tokenizer,
                prompt_token_ids,
                skip_special=skip_special_tokens,
                spaces=skip_special_tokens or spaces_between_special_tokens,
            )
        self._matcher = StopMatcher(tuple(stop), include_stop=include_stop_str_in_output) if stop else None
        self._min_tokens = min_tokens
        self._tokens = 0
        self._parts: list[str] = []
        self._taken = 0

    def push(self, token_id: int) -> str:
        """The text that this token makes certain; empty once a stop string was found."""
        self._tokens += 1
        text = self._stream.push(token_id)
        if self._matcher is not None:
            if self._matcher.hit is not None:
                return ""
            text = self._matcher.feed(text, armed=self._armed()) if text else ""
        if text:
            self._parts.append(text)
        return text

    def _armed(self) -> bool:
        # As in vLLM, the token that reaches min_tokens itself does not stop the request.
        return not self._min_tokens or self._tokens > self._min_tokens

    def finish(self) -> str:
        """The text still held back: an incomplete character (replaced) and the beginning of a stop string."""
        text = ""
        if self._matcher is None:
            text = self._stream.flush()
        elif self._matcher.hit is None:
            # A broken last character may complete a stop string only if that string holds a replacement
            # character.
            text = self._matcher.feed(self._stream.flush(), armed=self._armed())
            text += self._matcher.flush() if self._matcher.hit is None else ""
        if text:
            self._parts.append(text)
        return text

    @property
    def text(self) -> str:
        """All text given out so far."""
        if len(self._parts) > 1 and not self._taken:
            self._parts = ["".join(self._parts)]
        return "".join(self._parts)

    def take(self) -> str:
        """The text given out since the last call; for streams, at a cost that does not grow with the text."""
        new = "".join(self._parts[self._taken :])
        self._taken = len(self._parts)
        return new

    @property
    def stop_hit(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._matcher.hit if self._matcher is not None else None
