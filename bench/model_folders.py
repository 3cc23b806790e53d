"""Folders of well-known models without their weights: the published shapes and a tokenizer of the right size.

Timing needs no trained weights, and a benchmark that downloads nothing runs anywhere. The tokenizer is a
byte-level BPE whose merges are enumerated, not learnt; every engine detokenizes with it alike.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_COMMON = {"hidden_act": "silu", "attention_bias": False, "torch_dtype": "bfloat16", "num_key_value_heads": 8}


def _qwen3(hidden: int, inner: int, layers: int, heads: int, *, tied: bool) -> dict[str, Any]:
    return _COMMON | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "tie_word_embeddings": tied,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }


def _llama3(
    hidden: int, inner: int, layers: int, heads: int, *, head_dim: int, factor: float, tied: bool
) -> dict[str, Any]:
    return _COMMON | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "head_dim": head_dim,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": tied,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, tied=True),
    "Qwen3-14B": _qwen3(5120, 17408, 40, 40, tied=False),
    "Llama-3.2-1B": _llama3(2048, 8192, 16, 32, head_dim=64, factor=32.0, tied=True),
    "Llama-3.1-8B": _llama3(4096, 14336, 32, 32, head_dim=128, factor=8.0, tied=False),
}


def model_folder(name: str, parent: Path) -> Path:
    """The folder of a name of CONFIGS, written unless it is there; any other name is a folder already."""
    config = CONFIGS.get(name)
    if config is None:
        return Path(name)
    folder = parent / name
    if not (folder / "tokenizer_config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        ends = {"bos_token": config["bos_token_id"], "eos_token": config["eos_token_id"]}
        _write_tokenizer(folder, config["vocab_size"], ends)
    return folder


def _write_tokenizer(folder: Path, vocab_size: int, ends: dict[str, int]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = {token: f"<|{name}|>" for name, token in ends.items()}
    single = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = itertools.chain(((char, None) for char in single), _merges())
    vocab: dict[str, int] = {}
    merges: list[tuple[str, str]] = []
    for token in range(vocab_size):
        if token in special:
            vocab[special[token]] = token
            continue
        left, right = next(words)
        if right is not None:
            merges.append((left, right))
        vocab[left + (right or "")] = token
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special.values()])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | {
        name: special[token] for name, token in ends.items()
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs whose parts were made before: every string of two letters, then of three, and so on."""
    letters = "etaoinshrdlcumwfgypbvkjxqz"
    for length in itertools.count(1):
        for left in itertools.product(letters, repeat=length):
            for right in letters:
                yield "".join(left), right
