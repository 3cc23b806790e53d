"""Plans of models whose layers see different amounts of the past, and of mixtures of experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.config import CacheConfig, LoadConfig, ModelConfig, SchedulerConfig
from octavo.core import Engine, EngineConfig
from octavo.plan import Plan, footprint_of, resolve

HYBRIDS = {
    "gemma2": ["full", "sliding_window"],
    "gemma3": ["full", "sliding_window"],
    "gpt-oss": ["full", "sliding_window"],
    "llama4": ["full", "chunked_local"],
    "mixtral": ["sliding_window"],
}
# The text model of Gemma 3 4B: 5 layers that see everything, 29 with a window of 1,024.
GEMMA = {
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "sliding_window": 1024,
    "dtype": "bfloat16",
}


def plan_of(folder: Path, length: int | None = None, **cache: Any) -> Plan:
    model = ModelConfig(model=folder, max_model_len=length, dtype="float32")
    return resolve(model, LoadConfig(load_format="dummy"), CacheConfig(**cache), available_memory=1 << 40)


@pytest.mark.parametrize("name", HYBRIDS)
def test_the_core_takes_the_groups_of_every_hybrid(tiny_folder: Any, name: str) -> None:
    plan = plan_of(tiny_folder(name), num_gpu_blocks_override=64)
    assert [group.kind for group in plan.footprint.groups] == HYBRIDS[name]
    layers = sorted(layer for group in plan.footprint.groups for layer in group.layers)
    assert layers == list(range(plan.spec.num_layers))
    engine = Engine(EngineConfig(**plan.engine_options()))
    tables = [engine.block_table(group).shape for group in range(len(HYBRIDS[name]))]
    assert tables == [(plan.max_num_seqs, plan.max_model_len // 16)] * len(tables)


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(GEMMA))
    return tmp_path


def test_a_window_keeps_no_more_of_a_long_context_than_itself(gemma: Path) -> None:
    footprint = footprint_of(
        ModelConfig(model=gemma, dtype="bfloat16"),
        LoadConfig(load_format="dummy"),
        scheduler=SchedulerConfig(max_num_batched_tokens=2048),
    )
    full, sliding = footprint.groups
    assert (len(full.layers), full.split, len(sliding.layers), sliding.split) == (5, 29, 29, 5)
    layer_bytes = 2 * 4 * 256 * 2  # keys and values of a token in one layer
    assert footprint.token_bytes == 34 * layer_bytes
    held = footprint.request_bytes(131072)
    window = -(-(1024 + 2 * 2048) // 16) + 1  # blocks: the window and the steps in flight
    assert held == 5 * 131072 * layer_bytes + 29 * window * 16 * layer_bytes
    assert held < footprint.token_bytes * 131072 // 5
    # 64 GiB beside everything else hold 20 such requests; with all layers full it would be 3.
    blocks = (64 << 30) // footprint.block_bytes
    assert footprint.most(131072, blocks) == 20
    assert (64 << 30) // (footprint.token_bytes * 131072) == 3


def test_a_pool_too_small_for_the_length_names_the_number_that_fits(gemma: Path) -> None:
    with pytest.raises(ValueError, match=r"max_model_len<=(\d+) or num_gpu_blocks_override>=(\d+)") as caught:
        plan_of(gemma, 131072, num_gpu_blocks_override=200)
    words = str(caught.value).split("max_model_len<=")[1]
    longest, blocks = int(words.split()[0]), int(words.split(">=")[1].split()[0].rstrip(".;,"))
    assert plan_of(gemma, longest, num_gpu_blocks_override=200).max_model_len == longest
    with pytest.raises(ValueError, match="too small"):
        plan_of(gemma, longest + 16, num_gpu_blocks_override=200)
    assert plan_of(gemma, 131072, num_gpu_blocks_override=blocks).num_blocks == blocks
    assert plan_of(gemma, num_gpu_blocks_override=200).max_model_len == longest


def test_each_rotary_table_is_counted(tiny_folder: Any) -> None:
    bytes_of = {name: plan_of(tiny_folder(name), 1024) for name in ("gemma2", "gemma3", "llama4")}
    assert dict(bytes_of["gemma2"].ledger)["rotary table"] == 1024 * 32 * 4
    assert dict(bytes_of["gemma3"].ledger)["rotary table"] == 2 * 1024 * 32 * 4


def test_a_step_s_copies_for_experts_are_counted(tiny_folder: Any) -> None:
    plan = plan_of(tiny_folder("mixtral"))
    tokens = plan.max_num_batched_tokens
    experts = 2 * (2 * 128 + 3 * 192)  # two experts a token: copies, gate and up, product, result
    assert plan.footprint.activation_bytes == tokens * 4 * (3 * 128 + experts) + plan.footprint.logits_bytes
