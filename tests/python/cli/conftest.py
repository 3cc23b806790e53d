"""Model folders for the command's tests: config.json alone, or the model inside the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import VOCAB_SIZE, save_tokenizer

import octavo

TINY = Path(octavo.__file__).resolve().parent / "assets" / "tiny"

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def config_folder(tmp_path: Path) -> Path:
    """A model folder with config.json alone."""
    folder = tmp_path / "small-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> list[str]:
    """The arguments of a model that talks nonsense: a tokenizer with a chat template, and random weights."""
    folder = save_tokenizer(tmp_path / "nonsense")
    config = {**LLAMA, "vocab_size": VOCAB_SIZE, "eos_token_id": 3}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.6}))
    return [str(folder), "--load-format", "dummy", "--kv-cache-memory-bytes", "32MiB"]


@pytest.fixture
def tiny() -> str:
    """The name of the model in the package; skips where it has not been built."""
    if not (TINY / "model.safetensors").is_file():
        pytest.skip("python/octavo/assets/tiny/model.safetensors is not built")
    return "tiny"
