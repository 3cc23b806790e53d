"""Rotary tables and the logits made with them equal transformers' for every kind of scaling."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from models.stepper import Stepper

from octavo.hf_config import ModelSpec, load_model_spec
from octavo.layers.rope import rotary_table

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": YARN,
    "yarn-mscale": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0},
    "yarn-attention-factor": {**YARN, "attention_factor": 1.3},
    "yarn-betas": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn-not-truncated": {**YARN, "truncate": False},
    "partial": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0, "partial_rotary_factor": 0.5},
}


def config_with(rope: dict[str, Any], max_position: int = 256) -> Any:
    return tiny_models.config_of("llama", rope_parameters=dict(rope), max_position_embeddings=max_position)


def spec_of(config: Any, folder: Path, max_model_len: int | None = None) -> ModelSpec:
    raw = {**json.loads(config.to_json_string(use_diff=False)), "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(raw))
    return load_model_spec(folder, max_model_len=max_model_len)


def transformers_table(config: Any, length: int) -> torch.Tensor:
    """[length, R] float32 in our layout, from transformers' own rotary module."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
    half = cos.shape[-1] // 2
    return torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_is_transformers(tmp_path: Path, kind: str) -> None:
    config = config_with(KINDS[kind])
    spec = spec_of(config, tmp_path, max_model_len=256)
    table = rotary_table(spec)
    want = transformers_table(config, 256)
    assert table.shape == want.shape == (256, spec.rope.rotary_dim)
    assert (table - want).abs().max().item() < 2e-5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "partial"])
def test_logits_are_transformers(tmp_path: Path, kind: str) -> None:
    """`partial` is left out: transformers' Llama does not apply a partial table to a whole head."""
    folder = tiny_models.save_model(
        tmp_path, "llama", rope_parameters=KINDS[kind], max_position_embeddings=256
    )
    prompt = tiny_models.random_prompts(1, low=200, high=200, seed=9)[0]
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        want = model(torch.tensor([prompt])).logits[0]
    got = Stepper(folder).feed(prompt, [120, 1, 79])
    assert (got - want).abs().max().item() < 1e-4


def test_dynamic_is_transformers_for_a_sequence_of_the_longest_length(tmp_path: Path) -> None:
    """transformers re-makes the table as a sequence grows. A paged cache keeps keys as they were rotated, so
    ours is fixed for max_model_len: it agrees with transformers' at that length and deviates below it."""
    config = config_with(KINDS["dynamic"], max_position=64)
    table = rotary_table(spec_of(config, tmp_path, max_model_len=128))
    assert (table - transformers_table(config, 128)).abs().max().item() < 2e-5
    assert (table[:64] - transformers_table(config, 64)).abs().max().item() > 0.1


def test_a_model_planned_for_its_own_length_has_no_dynamic_stretch(tmp_path: Path) -> None:
    config = config_with(KINDS["dynamic"], max_position=64)
    table = rotary_table(spec_of(config, tmp_path, max_model_len=64))
    assert (table - transformers_table(config, 64)).abs().max().item() < 2e-5


def test_yarn_scales_cosines_and_sines_by_its_attention_factor(tmp_path: Path) -> None:
    spec = spec_of(config_with(YARN), tmp_path, max_model_len=8)
    norms = rotary_table(spec).pow(2).view(8, 2, -1).sum(1).sqrt()
    assert torch.allclose(norms, torch.full_like(norms, 0.1 * math.log(4.0) + 1.0))
    plain = dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, mscale=1.0, mscale_all_dim=1.0))
    assert torch.allclose(rotary_table(plain)[0, :16], torch.ones(16))
