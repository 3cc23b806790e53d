"""Mixtures of experts in config.json: GPT-OSS, Llama 4, Mixtral and Qwen3, as they are spelt and misspelt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ModelError
from octavo.hf_config import ModelSpec, load_model_spec

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
}


def spec_of(folder: Path, architecture: str, **changes: Any) -> ModelSpec:
    config = {"architectures": [architecture], **SHAPE, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return load_model_spec(folder)


def test_gpt_oss_takes_its_class_s_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GptOssForCausalLM"]}))
    spec = load_model_spec(tmp_path)
    assert (spec.num_layers, spec.hidden_size, spec.head_dim, spec.vocab_size) == (36, 2880, 64, 201088)
    assert spec.layer_windows[:4] == (128, 0, 128, 0)
    assert spec.attention_bias
    assert spec.attention_out_bias
    assert spec.attention_sinks
    assert (spec.rope.kind, spec.rope.theta, spec.rope.factor) == ("yarn", 150000.0, 32.0)
    assert (spec.rope.truncate, spec.context_limit) == (False, 131072)
    experts = spec.experts
    assert experts is not None
    assert (experts.count, experts.per_token, experts.inner, experts.bias) == (128, 4, 2880, True)
    assert (experts.gate, experts.sigmoid, experts.renormalize) == ((1.702, 7.0), False, True)
    # 116.8 billion, as published.
    assert spec.num_parameters == pytest.approx(116.8e9, rel=1e-3)


def test_llama_4_takes_its_class_s_defaults_from_a_checkpoint_with_images(tmp_path: Path) -> None:
    text = {"model_type": "llama4_text", "num_local_experts": 16}
    config = {"architectures": ["Llama4ForConditionalGeneration"], "text_config": text, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = load_model_spec(tmp_path)
    assert (spec.num_layers, spec.hidden_size, spec.intermediate_size) == (48, 5120, 16384)
    assert spec.layer_windows[:5] == (8192, 8192, 8192, 0, 8192)
    assert spec.chunked_windows
    assert spec.unrotated == tuple(range(3, 48, 4))
    assert spec.rope_of(3) is None
    assert spec.rope_of(0) == spec.rope
    assert (spec.unit_heads, spec.temperature) == (True, (0.1, 8192.0))
    experts = spec.experts
    assert experts is not None
    assert all(experts.layers)
    assert (experts.count, experts.per_token, experts.inner) == (16, 1, 8192)
    assert (experts.sigmoid, experts.renormalize, experts.shared) == (True, False, True)
    # Scout's text model: 107.8 billion, its 17 billion active.
    assert spec.num_parameters == pytest.approx(107.8e9, rel=2e-3)


def test_which_layers_have_experts(tmp_path: Path) -> None:
    def layers(architecture: str, **changes: Any) -> tuple[bool, ...]:
        experts = spec_of(tmp_path, architecture, **changes).experts
        assert experts is not None
        return experts.layers

    llama4 = {"architecture": "Llama4ForCausalLM", "intermediate_size_mlp": 96}
    assert layers(**llama4, interleave_moe_layer_step=2) == (False, True, False, True)
    assert layers(**llama4, moe_layers=[0]) == (True, False, False, False)
    assert layers("Qwen3MoeForCausalLM", decoder_sparse_step=2) == (False, True, False, True)
    assert layers("Qwen3MoeForCausalLM", mlp_only_layers=[1]) == (True, False, True, True)
    assert layers("MixtralForCausalLM") == (True,) * 4


def test_what_qwen_and_mixtral_leave_open(tmp_path: Path) -> None:
    qwen = spec_of(tmp_path, "Qwen3MoeForCausalLM", num_experts=16, sliding_window=8).experts
    assert qwen is not None
    assert (qwen.count, qwen.per_token, qwen.inner, qwen.renormalize) == (16, 8, 768, False)
    assert spec_of(tmp_path, "Qwen3MoeForCausalLM", sliding_window=8).layer_windows == (0,) * 4
    sliding = {"sliding_window": 8, "use_sliding_window": True}
    assert spec_of(tmp_path, "Qwen3MoeForCausalLM", **sliding).layer_windows == (8,) * 4
    normed = spec_of(tmp_path, "Qwen3MoeForCausalLM", norm_topk_prob=True).experts
    assert normed is not None
    assert normed.renormalize
    mixtral = spec_of(tmp_path, "MixtralForCausalLM")
    assert mixtral.experts is not None
    assert (mixtral.experts.count, mixtral.experts.per_token) == (8, 2)
    assert (mixtral.rope.theta, mixtral.layer_windows) == (1e6, (0,) * 4)


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("MixtralForCausalLM", "num_local_experts", 0),
        ("MixtralForCausalLM", "num_experts_per_tok", 9),
        ("Qwen3MoeForCausalLM", "num_experts", "many"),
        ("Qwen3MoeForCausalLM", "mlp_only_layers", [4]),
        ("Qwen3MoeForCausalLM", "norm_topk_prob", 1),
        ("Qwen3MoeForCausalLM", "decoder_sparse_step", 0),
        ("GptOssForCausalLM", "swiglu_limit", 0),
        ("GptOssForCausalLM", "swiglu_alpha", float("inf")),
        ("GptOssForCausalLM", "layer_types", ["chunked_attention"] * 4),
        ("Llama4ForCausalLM", "attention_chunk_size", 0),
        ("Llama4ForCausalLM", "no_rope_layers", [1, 1]),
        ("Llama4ForCausalLM", "no_rope_layers", [1, 1, 2, 0]),
        ("Llama4ForCausalLM", "moe_layers", [True]),
        ("Llama4ForCausalLM", "layer_types", ["sliding_attention"] * 4),
        ("Llama4ForCausalLM", "floor_scale", -1),
        ("Llama4ForCausalLM", "use_qk_norm", "yes"),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path: Path, architecture: str, key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"{key}=.* is not valid"):
        spec_of(tmp_path, architecture, **{key: value})
