"""Recurrent layers in a plan: their group, how the pool is cut for it, and what config.json may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from octavo.config import CacheConfig, LoadConfig, ModelConfig
from octavo.errors import ModelError
from octavo.hf_config import load_model_spec
from octavo.plan import Plan, footprint_of, resolve
from octavo.plan.footprint import Footprint
from octavo.plan.groups import GOOD_WASTE, MAX_SPLIT, cut_pool, layer_groups

# Bamba 9B: 29 recurrent layers of 128 heads with states of 64 x 128, three of attention.
NINE_B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "attn_layer_indices": [9, 18, 27],
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 128,
    "mamba_d_head": "auto",
    "dtype": "bfloat16",
}


def write_config(folder: Path, name: str = "bamba", **changes: Any) -> Path:
    config = json.loads(tiny_models.config_of(name).to_json_string(use_diff=False))
    architecture = {"bamba": "BambaForCausalLM", "granite-hybrid": "GraniteMoeHybridForCausalLM"}[name]
    raw = {**config, "architectures": [architecture], **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))
    return folder


def footprint(folder: Path, cache: dict[str, Any] | None = None, **changes: Any) -> Footprint:
    model = ModelConfig(model=write_config(folder, **changes), dtype="bfloat16")
    return footprint_of(model, LoadConfig(load_format="dummy"), CacheConfig(**cache or {}))


def plan_of(folder: Path, **cache: Any) -> Plan:
    model = ModelConfig(model=folder, dtype="float32")
    return resolve(model, LoadConfig(load_format="dummy"), CacheConfig(**cache), available_memory=1 << 30)


def test_a_large_state_makes_attention_blocks_longer_until_they_fill_its_place(tmp_path: Path) -> None:
    found = footprint(tmp_path, **NINE_B)
    full, state = found.groups
    assert (full.split, state.split, found.block_size) == (39, 1, 256)
    assert 117 << 20 < found.state_bytes < 118 << 20
    assert max(found.cut.waste) < 0.01
    # A short prompt takes one state and one block of attention, not a parent of each.
    assert found.request_bytes(12) < 1.04 * (found.state_bytes + 12 * found.token_bytes)
    assert found.most(12, 1000) == 975  # so many states, and 25 parents of 39 blocks


def test_a_block_size_that_was_given_is_kept_and_its_waste_told(tmp_path: Path) -> None:
    found = footprint(tmp_path, {"block_size": 32}, **NINE_B)
    assert (found.block_size, found.groups[0].split) == (32, MAX_SPLIT)
    assert found.cut.waste[0] > 0.75


@pytest.mark.parametrize("state_bytes", [64, 640, 8_000, 8_192, 9_000, 41_000, 300_000, 524_288])
def test_the_pool_is_cut_so_that_no_group_wastes_much(state_bytes: int) -> None:
    cut = cut_pool(layer_groups((0, 0)), 4096, (2, 3), state_bytes)
    assert cut.parent_bytes % (64 * cut.groups[0].split) == cut.parent_bytes % (64 * cut.groups[1].split) == 0
    assert all(0 <= waste <= GOOD_WASTE for waste in cut.waste) or state_bytes == 64
    used = [group.split * size for group, size in zip(cut.groups, cut.block_bytes)]
    assert max(used) <= cut.parent_bytes


def test_windows_and_states_share_one_pool() -> None:
    cut = cut_pool(layer_groups((0, 24, 24), (0, 1, 2)), 8192, (3, 4), 100_000)
    assert [group.kind for group in cut.groups] == ["full", "sliding_window", "state"]
    full, window, state = cut.groups
    assert full.split == 2 * window.split
    assert max(cut.waste) <= GOOD_WASTE


def test_a_request_holds_the_state_read_and_one_for_each_step_ahead(tmp_path: Path) -> None:
    state = footprint(tmp_path, **NINE_B).groups[1]
    assert [state.peak(tokens, 16, 2048) for tokens in (1, 16, 17, 33, 100_000)] == [1, 1, 2, 3, 3]


def test_the_engine_is_told_of_the_state_group_and_the_interval(tiny_folder: Any) -> None:
    from octavo.core import Engine, EngineConfig

    plan = plan_of(tiny_folder("bamba"), mamba_cache_interval=64)
    options = plan.engine_options()
    assert options["snapshot_interval"] == 64
    assert [(group.block_size, group.split) for group in options["groups"]] == [(16, 4), (16, 1)]
    Engine(EngineConfig(**options))


def test_the_ledger_counts_states_as_part_of_the_pool(tiny_folder: Any) -> None:
    plan = plan_of(tiny_folder("bamba"), num_gpu_blocks_override=600)
    assert dict(plan.ledger)["KV cache"] == 600 * plan.footprint.block_bytes
    assert plan.footprint.token_bytes == 2 * 2 * 32 * 4  # of the one layer that attends
    with pytest.raises(ValueError, match="mamba_cache_interval=-2"):
        CacheConfig(mamba_cache_interval=-2)


def test_the_state_is_read_from_config_json(tmp_path: Path) -> None:
    spec = load_model_spec(write_config(tmp_path))
    state = spec.state
    assert state is not None
    assert (spec.attention_layers, state.layers, spec.rope.rotary_dim) == ((1,), (0, 2), 16)
    assert (state.heads, state.head_dim, state.groups, state.size, state.taps) == (8, 32, 2, 12, 4)
    assert (state.inner, state.conv_size, state.projected) == (256, 304, 568)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_layer_indices", None),
        ("attn_layer_indices", [3]),
        ("attn_layer_indices", [0, 1, 2]),
        ("attn_layer_indices", [-1]),
        ("attn_layer_indices", "1"),
        ("mamba_n_heads", 7),
        ("mamba_n_groups", 3),
        ("mamba_d_head", 16),
        ("mamba_d_state", 0),
        ("mamba_d_state", 4096),
        ("mamba_d_conv", 1),
        ("mamba_conv_bias", "yes"),
        ("time_step_limit", [0.0, 1.0]),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"{key}=.* is not valid"):
        load_model_spec(write_config(tmp_path, **{key: value}))


def test_granite_names_its_layers_in_both_generations_of_transformers(tmp_path: Path) -> None:
    new = load_model_spec(write_config(tmp_path, "granite-hybrid"))
    old = load_model_spec(
        write_config(tmp_path, "granite-hybrid", layer_types=["mamba", "attention", "mamba"])
    )
    assert new == old
    assert (new.attention_layers, new.unrotated, new.intermediate_size) == ((1,), (0, 1, 2), 160)
    assert (new.embedding_scale, new.residual_scale, new.logits_scale) == (2.0, 0.7, 1.5)
    assert (
        load_model_spec(write_config(tmp_path, "granite-hybrid", position_embedding_type="rope")).unrotated
        == ()
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_local_experts", 8),
        ("layer_types", ["mamba", "mamba", "mamba"]),
        ("layer_types", ["mamba", "attention"]),
        ("residual_multiplier", 0.0),
        ("mamba_n_heads", 3),
    ],
)
def test_nonsense_of_granite_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"{key}=.* is not valid"):
        load_model_spec(write_config(tmp_path, "granite-hybrid", **{key: value}))
