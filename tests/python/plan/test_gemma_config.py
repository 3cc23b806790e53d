"""Gemma's config.json, as the hub's models and as either generation of transformers spell it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ModelError
from octavo.hf_config import ModelSpec, load_model_spec

# What the published 4B states of its text model; everything else is its class's default.
TEXT = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}
SMALL: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "sliding_window": 24,
}


def spec_of(folder: Path, config: dict[str, Any], **changes: Any) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return load_model_spec(folder)


def test_a_sparse_file_of_text_and_images_takes_its_class_s_defaults(tmp_path: Path) -> None:
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "text_config": TEXT,
        "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152},
    }
    spec = spec_of(tmp_path, config)
    assert (spec.hidden_size, spec.num_layers, spec.vocab_size) == (2560, 34, 262208)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (8, 4, 256)
    assert spec.layer_windows[:7] == (1024,) * 5 + (0, 1024)
    assert sum(window == 0 for window in spec.layer_windows) == 5
    assert (spec.rope.kind, spec.rope.theta, spec.rope.factor) == ("linear", 1e6, 8.0)
    assert spec.local_rope is not None
    assert (spec.local_rope.kind, spec.local_rope.theta) == ("default", 1e4)
    assert spec.context_limit == 131072  # what rope's factor made possible, not eight times that
    assert spec.attention_scale == 256**-0.5
    assert (spec.hidden_act, spec.tie_embeddings, spec.dtype) == ("gelu_tanh", True, "bfloat16")
    assert spec.eos_token_ids == (1, 106)
    assert (spec.attn_soft_cap, spec.final_soft_cap) == (0.0, 0.0)


def test_both_spellings_of_two_embeddings_give_the_same_spec(tmp_path: Path) -> None:
    old = {
        "rope_theta": 5e5,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    }
    new = {
        "full_attention": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    first, second = spec_of(tmp_path, SMALL, **old), spec_of(tmp_path, SMALL, rope_parameters=new)
    assert (first.rope, first.local_rope) == (second.rope, second.local_rope)
    assert (first.rope.theta, first.rope.factor) == (5e5, 4.0)
    assert first.rope_of(0) == first.local_rope
    assert first.rope_of(5) == first.rope


def test_a_pattern_says_which_layers_see_everything(tmp_path: Path) -> None:
    assert spec_of(tmp_path, SMALL).layer_windows == (24,) * 5 + (0, 24, 24)
    assert spec_of(tmp_path, SMALL, sliding_window_pattern=2).layer_windows == (24, 0) * 4
    types = ["full_attention"] * 7 + ["sliding_attention"]
    assert spec_of(tmp_path, SMALL, layer_types=types).layer_windows == (0,) * 7 + (24,)


def test_soft_caps_are_read_and_gemma_2_has_them_by_itself(tmp_path: Path) -> None:
    caps = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0}
    spec = spec_of(tmp_path, SMALL, **caps)
    assert (spec.attn_soft_cap, spec.final_soft_cap) == (20.0, 10.0)
    spec = spec_of(tmp_path, SMALL, architectures=["Gemma2ForCausalLM"])
    assert (spec.attn_soft_cap, spec.final_soft_cap, spec.local_rope) == (50.0, 30.0, None)
    assert spec.layer_windows == (24, 0) * 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_bidirectional_attention", True),
        ("query_pre_attn_scalar", 0),
        ("sliding_window", 0),
        ("sliding_window", "wide"),
        ("sliding_window_pattern", 0),
        ("layer_types", ["sliding_attention"] * 7),
        ("layer_types", ["chunked_attention"] * 8),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
        ("rope_local_base_freq", -1.0),
        ("final_logit_softcapping", -30.0),
        ("hidden_activation", "relu"),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"{key}=.* is not valid"):
        spec_of(tmp_path, SMALL, **{key: value})


def test_a_text_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": [1]}
    with pytest.raises(ModelError, match="text_config="):
        spec_of(tmp_path, config)
