"""Small tokenizers of every kind that language models ship, trained in milliseconds on a fixed text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "the cat sits on the paged attention block, and the dog runs over the river stone.",
    "def f(x):\n    return x + 42\n",
    "naïve café, Grüße, 你好世界, emoji 🙂 and 👩‍💻",
    "prefix cache, block table, request and token; isn't it? Yes!",
] * 20
SPECIALS = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def byte_level() -> Tokenizer:
    """GPT-2's kind: Llama 3, Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool call>", special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A"], special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def _byte_fallback(pre_tokenizer: Any, normalizer: Any, decoder: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=[*SPECIALS, *BYTES], show_progress=False)
    tokenizer.train_from_iterator((text for text in CORPUS if text.isascii()), trainer)
    # The byte tokens must be ordinary entries of the vocabulary: special ones would be skipped in decoding.
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in SPECIALS]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.decoder = decoder
    return tokenizer


def sentencepiece() -> Tokenizer:
    """Llama 2's and Mistral's kind: ▁ for a space, byte fallback, the text's first space stripped."""
    return _byte_fallback(
        None,
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(content=" ", left=1, right=0),
            ]
        ),
    )


def gemma() -> Tokenizer:
    """Gemma's kind: as sentencepiece, without a prefix space or strip."""
    return _byte_fallback(
        pre_tokenizers.Split(" ", "merged_with_previous"),
        normalizers.Replace(" ", "▁"),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )


def metaspace() -> Tokenizer:
    """Unigram models' kind: Metaspace before and after."""
    return _byte_fallback(
        pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        None,
        decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always")]
        ),
    )


def wordpiece() -> Tokenizer:
    """BERT's kind, whose decoder joins words with spaces: no map from tokens to bytes."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIALS, show_progress=False)
    )
    return tokenizer


ZOO = {
    "byte_level": byte_level,
    "sentencepiece": sentencepiece,
    "gemma": gemma,
    "metaspace": metaspace,
    "wordpiece": wordpiece,
}


def save(folder: Path, kind: str, **config: Any) -> Path:
    """Writes tokenizer.json and tokenizer_config.json; `config` overrides or, with None, removes entries."""
    folder.mkdir(parents=True, exist_ok=True)
    ZOO[kind]().save(str(folder / "tokenizer.json"))
    entries = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        **config,
    }
    entries = {name: value for name, value in entries.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))
    return folder
