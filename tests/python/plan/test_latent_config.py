"""Latent attention and DeepSeek's experts in config.json, and the memory that follows from them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from octavo.config import ModelConfig
from octavo.errors import ModelError
from octavo.hf_config import ModelSpec, load_model_spec
from octavo.kv_events import wire
from octavo.plan import footprint_of
from octavo.plan.footprint import capacity_table

YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32}
# What config.json of the published models says, where it is not the class's default.
V2 = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "num_hidden_layers": 60,
    "num_attention_heads": 128,
    "n_routed_experts": 160,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1536,
    "first_k_dense_replace": 1,
    "n_group": 8,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
    "routed_scaling_factor": 16.0,
    "max_position_embeddings": 163840,
    "rope_scaling": {**YARN, "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707},
    "torch_dtype": "bfloat16",
}
V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 163840,
    "rope_scaling": {**YARN, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
}
LITE = {
    **V2,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "q_lora_rank": None,
    "n_routed_experts": 64,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "routed_scaling_factor": 1.0,
}


def spec_of(folder: Path, config: dict[str, Any], **changes: Any) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return load_model_spec(folder)


@pytest.mark.parametrize(
    ("config", "billions", "values"),
    [(V2, 235.7, 60 * 576), (LITE, 15.7, 27 * 576), (V3, 671.0, 61 * 576)],
    ids=["V2", "V2-Lite", "V3"],
)
def test_published_models_have_their_published_sizes(
    tmp_path: Path, config: dict[str, Any], billions: float, values: int
) -> None:
    spec = spec_of(tmp_path, config)
    assert spec.num_parameters == pytest.approx(billions * 1e9, rel=1e-3)
    footprint = footprint_of(ModelConfig(model=tmp_path, dtype="bfloat16", max_model_len=4096))
    assert footprint.token_bytes == 2 * values
    (group,) = footprint.groups
    assert (group.kind, group.layers, group.split) == ("latent", tuple(range(spec.num_layers)), 1)
    assert wire.KINDS[group.kind] == "mla_attention"
    assert footprint.block_bytes == 16 * footprint.token_bytes


def test_the_cache_of_deepseek_v3_is_the_70_kilobytes_a_token_that_its_authors_state(tmp_path: Path) -> None:
    """70.272 KB in bfloat16 (Insights into DeepSeek-V3, 2025, table 1)."""
    spec_of(tmp_path, V3)
    footprint = footprint_of(ModelConfig(model=tmp_path, dtype="bfloat16", max_model_len=4096))
    assert footprint.token_bytes == 70_272
    room = footprint.fixed_bytes + 16 * 1024 * 70_272 + footprint.block_bytes
    rows = capacity_table(footprint, room, [1024, 16_384, 16_400])
    assert [(row.kv_bytes, row.batch) for row in rows] == [
        (1024 * 70_272, 16),
        (16_384 * 70_272, 1),
        (16_400 * 70_272, 0),
    ]


def test_a_stretched_context_is_made_up_for_in_the_scale(tmp_path: Path) -> None:
    stretch = 0.1 * math.log(40) + 1
    assert spec_of(tmp_path, V3).attention_scale == pytest.approx(192**-0.5 * stretch**2)
    assert spec_of(tmp_path, V3, rope_scaling=None).attention_scale == pytest.approx(192**-0.5)
    spec = spec_of(tmp_path, V3)
    assert (spec.rope.rotary_dim, spec.head_dim, spec.context_limit) == (64, 192, 163840)


def test_layers_that_predict_further_tokens_are_not_loaded(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, V3)
    assert spec.name_of("model.layers.61.eh_proj.weight") is None
    assert spec.name_of("model.layers.6.mlp.gate.weight") == "model.layers.6.mlp.gate.weight"
    assert spec.name_of("model.layers.60.mlp.gate.weight") is not None
    without = spec_of(tmp_path, V3, num_nextn_predict_layers=0)
    assert without.name_of("model.layers.61.eh_proj.weight") is not None


def test_each_generation_chooses_its_experts_in_its_way(tmp_path: Path) -> None:
    experts = spec_of(tmp_path, V2).experts
    assert experts is not None
    assert (experts.groups, experts.top_groups, experts.group_best) == (8, 3, 1)
    assert (experts.sigmoid, experts.corrected, experts.renormalize, experts.scale) == (
        False,
        False,
        False,
        16,
    )
    assert experts.layers[:2] == (False, True)
    experts = spec_of(tmp_path, LITE).experts
    assert experts is not None
    assert (experts.groups, experts.top_groups, experts.shared) == (1, 1, 2)
    experts = spec_of(tmp_path, V3).experts
    assert experts is not None
    assert (experts.groups, experts.top_groups, experts.group_best) == (8, 4, 2)
    assert (experts.sigmoid, experts.corrected, experts.renormalize, experts.scale) == (True, True, True, 2.5)
    assert experts.layers[:4] == (False, False, False, True)


BLOCKWISE_FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("config", "key", "value", "says"),
    [
        (V3, "quantization_config", BLOCKWISE_FP8, "weight_block_size"),
        (V3, "num_key_value_heads", 8, "every one of num_attention_heads=128"),
        (V3, "kv_lora_rank", 1000, "may have 1024 entries"),
        (V3, "qk_rope_head_dim", 63, "it must be even"),
        (V3, "n_group", 7, "must cut n_routed_experts=256 evenly"),
        (V3, "topk_group", 9, "there are n_group=8"),
        (V3, "num_experts_per_tok", 129, "the groups of a token hold 128 experts"),
        (V3, "scoring_func", "softmax", "'sigmoid' is expected"),
        (V3, "topk_method", "greedy", "supported are noaux_tc"),
        (V3, "moe_layer_freq", 2, "only 1 is supported"),
        (V2, "topk_method", "noaux_tc", "supported are greedy, group_limited_greedy"),
        (V2, "norm_topk_prob", True, "only false has one meaning"),
        (V2, "routed_scaling_factor", 0, "above 0"),
        (V2, "num_nextn_predict_layers", -1, "an integer from 0"),
    ],
)
def test_what_cannot_be_is_named(
    tmp_path: Path, config: dict[str, Any], key: str, value: Any, says: str
) -> None:
    with pytest.raises(ModelError, match=f"{key}.*=.* is not valid: ") as caught:
        spec_of(tmp_path, config, **{key: value})
    assert says in str(caught.value)
