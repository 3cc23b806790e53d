"""A Plan records why it chose what it chose, and refuses with the one number to change."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.config import CacheConfig, DeviceConfig, LoadConfig, ModelConfig, SchedulerConfig
from octavo.plan import CapacityRow, Plan, capacity_table, footprint_of, machine, resolve

GIB = 1 << 30
# Tiny models: 2 (K, V) * 3 layers * 2 heads * 32 dims * 16 tokens * 4 bytes.
BLOCK_BYTES = 24576


@pytest.fixture
def folder(tiny_folder: Any) -> Path:
    found: Path = tiny_folder("llama")
    return found


def plan_of(
    folder: Path,
    *,
    memory: int = GIB,
    cache: dict[str, Any] | None = None,
    scheduler: dict[str, Any] | None = None,
    device: dict[str, Any] | None = None,
    load_format: str = "auto",
    **model: Any,
) -> Plan:
    return resolve(
        ModelConfig(model=folder, **model),
        LoadConfig(load_format=load_format),
        CacheConfig(**cache or {}),
        SchedulerConfig(**scheduler or {}),
        DeviceConfig(**device or {}),
        available_memory=memory,
    )


def test_every_automatic_choice_has_a_reason(folder: Path) -> None:
    plan = plan_of(folder)
    chosen = {reason.field for reason in plan.reasons}
    limits = {"block_size", "max_model_len", "max_num_seqs", "max_num_batched_tokens"}
    assert chosen == {"device", "dtype", "num_blocks", "num_threads", "weights_bytes"} | limits
    assert all(reason.why for reason in plan.reasons)


def test_what_the_user_set_is_kept_without_a_reason(folder: Path) -> None:
    plan = plan_of(
        folder,
        dtype="float32",
        max_model_len="1K",
        cache={"num_gpu_blocks_override": 100, "block_size": 32},
        scheduler={"max_num_seqs": 7, "max_num_batched_tokens": 99},
        device={"device": "cpu", "num_threads": 1},
    )
    assert (plan.max_model_len, plan.num_blocks, plan.block_size) == (1024, 100, 32)
    assert (plan.max_num_seqs, plan.max_num_batched_tokens, plan.num_threads) == (7, 99, 1)
    assert [reason.field for reason in plan.reasons] == ["weights_bytes"]


def test_a_plan_cannot_be_changed(folder: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan_of(folder).num_blocks = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("checkpoint", "formats", "dtype"),
    [
        ("bfloat16", {"bfloat16"}, "bfloat16"),
        ("bfloat16", set(), "float32"),
        ("float16", {"bfloat16"}, "float32"),
        ("float32", {"bfloat16"}, "float32"),
    ],
)
def test_the_dtype_is_the_checkpoints_where_the_cpu_is_fast_at_it(
    folder: Path, tmp_path: Path, monkeypatch: Any, checkpoint: str, formats: set[str], dtype: str
) -> None:
    text = (folder / "config.json").read_text().replace('"float32"', f'"{checkpoint}"')
    (tmp_path / "config.json").write_text(text)
    monkeypatch.setattr(machine, "fast_formats", lambda: frozenset(formats))
    plan = plan_of(tmp_path)
    assert plan.dtype == plan.spec.dtype == dtype
    assert checkpoint in (plan.why("dtype") or "")


def test_the_pool_is_a_share_of_what_is_left_by_weights_and_activations(folder: Path) -> None:
    plan = plan_of(folder, scheduler={"max_num_seqs": 4096, "max_num_batched_tokens": 4096})
    budget = GIB // 2 - plan.footprint.fixed_bytes
    assert plan.num_blocks == budget // BLOCK_BYTES
    assert "50%" in (plan.why("num_blocks") or "")


def test_the_pool_never_exceeds_what_a_full_step_can_use(folder: Path) -> None:
    plan = plan_of(folder, memory=64 * GIB, scheduler={"max_num_seqs": 2})
    assert plan.num_blocks == 1 + 2 * 2048 // 16
    assert "every row" in (plan.why("num_blocks") or "")


def test_a_given_pool_size_is_rounded_down_to_blocks(folder: Path) -> None:
    plan = plan_of(folder, cache={"kv_cache_memory_bytes": 10 * BLOCK_BYTES + 1})
    assert plan.num_blocks == 10
    assert dict(plan.ledger)["KV cache"] == 10 * BLOCK_BYTES


def test_an_automatic_length_shrinks_to_what_the_pool_holds(folder: Path) -> None:
    plan = plan_of(folder, cache={"num_gpu_blocks_override": 5})
    assert plan.max_model_len == plan.spec.max_model_len == 4 * 16
    assert "the model was made for 2048" in (plan.why("max_model_len") or "")


def test_a_pool_too_small_for_the_length_names_both_ways_out(folder: Path) -> None:
    with pytest.raises(ValueError, match="max_model_len<=144 or kv_cache_memory_bytes>=1597440") as caught:
        plan_of(folder, max_model_len=1024, cache={"kv_cache_memory_bytes": 10 * BLOCK_BYTES})
    assert "too small for one request of max_model_len=1024" in str(caught.value)
    plan_of(folder, max_model_len=144, cache={"kv_cache_memory_bytes": 10 * BLOCK_BYTES})
    plan_of(folder, max_model_len=1024, cache={"kv_cache_memory_bytes": 1597440})


def test_a_pool_given_in_blocks_is_refused_in_blocks(folder: Path) -> None:
    with pytest.raises(ValueError, match="max_model_len<=144 or num_gpu_blocks_override>=65"):
        plan_of(folder, max_model_len=1024, cache={"num_gpu_blocks_override": 10})


def test_no_memory_at_all_is_refused_with_what_takes_it(folder: Path) -> None:
    with pytest.raises(ValueError, match="weights .* take .* of 512 KiB") as caught:
        plan_of(folder, memory=1 << 20)
    # No pool, however small, has room beside the weights.
    assert "are there: use a device with more memory" in str(caught.value)
    assert "kv_cache_memory_bytes" not in str(caught.value)


def test_memory_beyond_the_share_is_had_by_asking_for_a_pool(folder: Path) -> None:
    fixed = plan_of(folder, cache={"num_gpu_blocks_override": 200}).footprint.fixed_bytes
    memory = fixed + 3 * BLOCK_BYTES
    with pytest.raises(ValueError, match="set kv_cache_memory_bytes>=") as caught:
        plan_of(folder, memory=memory)
    pool = int(str(caught.value).split("kv_cache_memory_bytes>=")[1].split()[0])
    assert fixed + pool <= memory
    assert plan_of(folder, memory=memory, cache={"kv_cache_memory_bytes": pool}).max_model_len == 16
    with pytest.raises(ValueError, match="use a device with more memory"):
        plan_of(folder, memory=fixed + BLOCK_BYTES)


def test_a_length_beyond_the_model_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="max_model_len=4096 .*use at most"):
        plan_of(folder, max_model_len=4096)


def test_without_chunks_a_step_must_hold_a_whole_prompt(folder: Path) -> None:
    scheduler: dict[str, Any] = {"enable_chunked_prefill": False}
    assert plan_of(folder, scheduler=scheduler).max_num_batched_tokens >= 2048
    with pytest.raises(ValueError, match="max_num_batched_tokens=100 .*max_model_len=2048"):
        plan_of(folder, scheduler=scheduler | {"max_num_batched_tokens": 100})


def test_every_row_of_a_step_has_a_token(folder: Path) -> None:
    assert plan_of(folder, scheduler={"max_num_batched_tokens": 48}).max_num_seqs == 48
    assert plan_of(folder, scheduler={"max_num_seqs": 4000}).max_num_batched_tokens == 4000
    with pytest.raises(ValueError, match="max_num_seqs=64"):
        plan_of(folder, scheduler={"max_num_seqs": 64, "max_num_batched_tokens": 48})


def test_weights_are_counted_from_the_headers(folder: Path, tiny_folder: Any) -> None:
    for name in ("llama", "qwen2"):
        plan = plan_of(tiny_folder(name))
        assert dict(plan.ledger)["weights"] == plan.spec.num_parameters * 4
        assert "safetensors headers" in (plan.why("weights_bytes") or "")


def test_weights_are_counted_from_the_config_where_there_is_no_file(folder: Path) -> None:
    plan = plan_of(folder, load_format="dummy", dtype="bfloat16")
    assert dict(plan.ledger)["weights"] == plan.spec.num_parameters * 2


def test_threads_come_from_the_environment_unless_given(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("OCTAVO_NUM_THREADS", "3")
    assert plan_of(folder).num_threads == 3
    assert plan_of(folder, device={"num_threads": 2}).num_threads == 2
    monkeypatch.setenv("OCTAVO_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="OCTAVO_NUM_THREADS='many'"):
        plan_of(folder)


def test_the_capacity_table_counts_requests_of_each_length(folder: Path) -> None:
    footprint = footprint_of(ModelConfig(model=folder, dtype="float32"))
    assert footprint.block_bytes == BLOCK_BYTES
    memory = footprint.fixed_bytes + 9 * BLOCK_BYTES
    rows = capacity_table(footprint, memory, [16, 17, 64, 2048])
    assert rows == [
        CapacityRow(16, BLOCK_BYTES, 8),
        CapacityRow(17, 2 * BLOCK_BYTES, 4),
        CapacityRow(64, 4 * BLOCK_BYTES, 2),
        CapacityRow(2048, 128 * BLOCK_BYTES, 0),
    ]
    assert [row.batch for row in capacity_table(footprint, 1, [16])] == [0]


def test_the_engine_gets_every_option_it_takes(folder: Path) -> None:
    from octavo.core import Engine, EngineConfig

    plan = plan_of(folder)
    engine = Engine(EngineConfig(**plan.engine_options()))
    assert engine.config.num_blocks == plan.num_blocks
    assert engine.block_table().shape == (plan.max_num_seqs, plan.max_model_len // 16)


def test_planning_imports_no_torch() -> None:
    code = "import sys, octavo, octavo.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
