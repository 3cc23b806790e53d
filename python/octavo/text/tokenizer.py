"""Tokenizers, read from a model's folder with the `tokenizers` library.

tokenizer.json is the tokenizer, its post-processor says whether encoding adds a BOS token (add_bos_token in
the config does not count beside it, as in transformers 5). tokenizer_config.json, special_tokens_map.json
and chat_template.jinja name the special tokens and hold the chat template. Folders that have only another
format are converted by transformers, which is imported for them alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from octavo.errors import ModelError, file_failure, invalid
from octavo.hf.reader import read_json
from octavo.text.chat_template import ChatTemplate, find_chat_template
from octavo.text.decoder_model import DecoderModel, check_decoder, model_decoder

_MAX_ID_DIGITS = 10
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Classes whose special tokens are defaults of code, not of the folder. Used only for tokens the vocabulary
# has.
_CLASS_DEFAULTS = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    },
    "Qwen2Tokenizer": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
}


class _Pieces(dict[int, "str | bytes"]):
    """Token id to its text, or to its bytes where they are not whole characters; filled as ids are met."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._skip_special = skip_special

    def __missing__(self, token_id: int) -> str | bytes:
        hidden = self._skip_special and self._tokenizer.is_special(token_id)
        piece = self[token_id] = "" if hidden else self._tokenizer.whole_piece(token_id)
        return piece


class Tokenizer:
    """A model's tokenizer with the members of Hugging Face's that callers of an engine use.

    Encoding is safe from several threads. `decoder_model` is None where the decoder is not a map from
    tokens to bytes; detokenization then compares decoded texts.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, config: Mapping[str, Any], *, chat_template: str | None = None
    ) -> None:
        self._backend = backend
        # Truncation and padding belong to training; a request's tokens are taken whole.
        backend.no_truncation()
        backend.no_padding()
        self._special_tokens = _add_special_tokens(backend, config)
        added = backend.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else None
        check_decoder(decoder)
        self.decoder_model: DecoderModel | None = model_decoder(decoder)
        self._pieces = {skip: _Pieces(self, skip_special=skip) for skip in (False, True)}
        self.chat_template = chat_template
        self._template: ChatTemplate | None = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Raises ValueError for text that is not valid Unicode."""
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of several texts, tokenized in parallel."""
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {i} must be str, not {type(text).__name__}")
            if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
                raise ValueError(f"text {i} has a lone surrogate; encode it as valid Unicode (UTF-8) first")
        with _panics_as_errors():
            if len(texts) == 1:
                return [self._backend.encode(texts[0], add_special_tokens=add_special_tokens).ids]
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; ids outside the vocabulary give nothing."""
        ids = [token_ids] if isinstance(token_ids, int) else [int(token_id) for token_id in token_ids]
        with _panics_as_errors():
            return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """Text of each sequence of ids."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's entry, or None outside the vocabulary."""
        return self._backend.id_to_token(token_id) if token_id >= 0 else None

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str | None] | None:
        """The vocabulary's entry of one id, or of each."""
        if isinstance(ids, int):
            return self.id_to_token(ids)
        return [self.id_to_token(int(token_id)) for token_id in ids]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int | None] | None:
        """The id of one vocabulary entry, or of each; None for what the vocabulary lacks."""
        if isinstance(tokens, str):
            return self._backend.token_to_id(tokens)
        return [self._backend.token_to_id(token) for token in tokens]

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special_tokens` hides this token."""
        return token_id in self._special_ids

    def is_added(self, token_id: int) -> bool:
        """Whether the token was added to the model's vocabulary (special or not)."""
        return token_id in self._added_ids

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes a token stands for; None for special tokens, empty outside the vocabulary."""
        if self.is_special(token_id):
            return None
        piece = self.whole_piece(token_id)
        return piece if isinstance(piece, bytes) else piece.encode()

    def pieces(self, *, skip_special_tokens: bool) -> Mapping[int, str | bytes]:
        """Token id to text, or to bytes where they are not whole characters. For detokenization."""
        return self._pieces[skip_special_tokens]

    def whole_piece(self, token_id: int, *, first: bool = False) -> str | bytes:
        """The text of a token, special or not, or its bytes where they are not whole characters."""
        token = self.id_to_token(token_id)
        if token is None:
            return ""
        if self.decoder_model is None:
            return self.decode([token_id], skip_special_tokens=False)
        data = self.decoder_model.to_bytes(token, first=first)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data

    def first_piece(self, token_id: int) -> str | bytes:
        """`whole_piece` where no visible token stands before this one."""
        return self.whole_piece(token_id, first=True)

    @property
    def backend_tokenizer(self) -> tokenizers.Tokenizer:
        """The `tokenizers` object."""
        return self._backend

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Names of special tokens ("bos_token", ...) and their text."""
        return dict(self._special_tokens)

    @property
    def all_special_ids(self) -> list[int]:
        """Ids that `skip_special_tokens` hides."""
        return sorted(self._special_ids)

    @property
    def bos_token(self) -> str | None:
        """Text of the token that begins a sequence."""
        return self._special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """Text of the token that ends a sequence."""
        return self._special_tokens.get("eos_token")

    @property
    def pad_token(self) -> str | None:
        """Text of the padding token."""
        return self._special_tokens.get("pad_token")

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a sequence."""
        return self._special_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a sequence."""
        return self._special_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        """Id of the padding token."""
        return self._special_id("pad_token")

    def _special_id(self, name: str) -> int | None:
        token = self._special_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary without added tokens."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        """Every entry and its id, added tokens included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        tokenize: bool = True,
        **kwargs: Any,
    ) -> str | list[int]:
        """The prompt for a conversation: token ids, or the text where `tokenize` is False.

        Raises ValueError where there is no template, where the template refuses the messages (its own words
        are in the message) or where rendering exceeds its limits.
        """
        text = self._find_template(chat_template).render(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={**self._special_tokens, **kwargs},
        )
        # The template writes BOS itself where the model wants it.
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def _find_template(self, source: str | None) -> ChatTemplate:
        if source is not None:
            return ChatTemplate(source)
        if self._template is None:
            if self.chat_template is None:
                raise ValueError(
                    "this model has no chat template (chat_template.jinja or tokenizer_config.json); "
                    "pass chat_template, or give generate() a plain prompt"
                )
            self._template = ChatTemplate(self.chat_template)
        return self._template


@contextmanager
def _panics_as_errors() -> Iterator[None]:
    """Raises ModelError where the `tokenizers` library panics, which is no Exception that anybody expects."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        remedy = "use another version of tokenizers, or another tokenizer.json"
        raise ModelError(f"the tokenizers library cannot run this tokenizer ({error}); {remedy}") from error


def load_tokenizer(folder: str | Path, mode: str = "auto") -> Tokenizer:
    """The tokenizer of a model's folder.

    `mode`: "auto", or "slow" to let transformers build it even where tokenizer.json exists. Raises
    FileNotFoundError where there is no tokenizer and ValueError where its files are damaged or unreadable.
    """
    folder = Path(folder)
    try:
        return _load_tokenizer(folder, mode)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelError(file_failure(error.filename or folder, error)) from error


def _load_tokenizer(folder: Path, mode: str) -> Tokenizer:
    if mode not in ("auto", "slow"):
        raise invalid("tokenizer_mode", mode, "use 'auto' or 'slow'")
    config = _read_object(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        # The older of the two files counts only where the newer one does not describe the tokens.
        config.update(_read_object(folder / "special_tokens_map.json"))
    path = folder / "tokenizer.json"
    if mode == "slow" or not path.is_file():
        backend = _convert_with_transformers(folder)
    else:
        try:
            with _panics_as_errors():
                backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # The library raises bare Exception for whatever is wrong in the file.
            raise ValueError(f"{path} is not a usable tokenizer: {error}; download the file again") from error
    template = find_chat_template(folder, config)
    try:
        return Tokenizer(backend, config, chat_template=template)
    except ValueError as error:
        where = folder / "tokenizer_config.json"
        raise ValueError(f"{where} does not fit {path.name}: {error}; download both again") from error


def _convert_with_transformers(folder: Path) -> tokenizers.Tokenizer:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give a model's folder with a tokenizer.json")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json, and transformers, which could convert another format, is not "
            "installed; add tokenizer.json or `pip install transformers`"
        ) from error
    try:
        converted = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # Whatever a foreign loader raises means the same here.
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json and transformers found no tokenizer in it either: {words}"
        ) from error
    backend = getattr(converted, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ValueError(
            f"the tokenizer of {folder} ({type(converted).__name__}) has no form that `tokenizers` can run; "
            "convert it to tokenizer.json"
        )
    return backend


def _read_object(path: Path) -> dict[str, Any]:
    return read_json(path) or {}


def _added_token(value: Any, known: Mapping[str, tokenizers.AddedToken]) -> tokenizers.AddedToken | None:
    """A special token as a config names it, by string or object, with the properties it already has."""
    if isinstance(value, str):
        token = known.get(value) or tokenizers.AddedToken(value, normalized=False, special=True)
    elif isinstance(value, dict) and isinstance(value.get("content"), str):
        options = {
            key: bool(value[key]) for key in ("lstrip", "rstrip", "normalized", "single_word") if key in value
        }
        token = tokenizers.AddedToken(value["content"], special=bool(value.get("special", True)), **options)
    else:
        return None
    return token if token.content else None


def _declared_tokens(declared: Any) -> list[Any]:
    """The tokens of an object that maps ids to them, by rising id."""
    if not isinstance(declared, dict):
        raise invalid("added_tokens_decoder", declared, "an object from token ids to tokens is expected")
    for key in declared:
        if not key.isascii() or not key.isdecimal() or len(key) > _MAX_ID_DIGITS:
            raise invalid("added_tokens_decoder", key, "its keys are token ids")
    return [declared[key] for key in sorted(declared, key=int)]


def _add_special_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> dict[str, str]:
    """Makes sure the backend knows every token that the config calls special; returns the named ones."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    ordinary = []
    for value in _declared_tokens(config.get("added_tokens_decoder") or {}):
        token = _added_token(value, known)
        if token is not None and token.content not in known:
            ordinary.append(token)
            known[token.content] = token
    if ordinary:
        backend.add_tokens(ordinary)

    named: dict[str, str] = {}
    special = []
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    own_names = (key for key in config if key.endswith("_token") and key not in _NAMED_TOKENS)
    for name in (*_NAMED_TOKENS, *own_names):
        token = _added_token(config.get(name), known)
        if token is None and name not in config:
            default = _CLASS_DEFAULTS.get(kind, {}).get(name)
            token = (
                _added_token(default, known) if default and backend.token_to_id(default) is not None else None
            )
        if token is not None:
            named[name] = token.content
            special.append(token)
    for name in ("additional_special_tokens", "extra_special_tokens"):
        values = config.get(name) or []
        if not isinstance(values, (dict, list)):
            raise invalid(name, values, "a list or an object of tokens is expected")
        if isinstance(values, dict):
            named.update({key: value for key, value in values.items() if isinstance(value, str)})
            values = list(values.values())
        special.extend(token for value in values if (token := _added_token(value, known)) is not None)
    for token in special:
        token.special = True
    if special:
        backend.add_special_tokens(special)
    return named
