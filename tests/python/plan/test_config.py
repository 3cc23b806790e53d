"""What a user may choose is checked when it is chosen, and the error says what to do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from octavo.config import (
    CacheConfig,
    DeviceConfig,
    LoadConfig,
    LogConfig,
    ModelConfig,
    SchedulerConfig,
    from_options,
    model_folder,
    option_names,
    parse_length,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (8192, 8192),
        ("8192", 8192),
        ("8k", 8000),
        ("8K", 8192),
        ("25.6k", 25600),
        ("auto", None),
    ],
)
def test_lengths_have_the_units_of_vllm(text: Any, tokens: int | None) -> None:
    assert parse_length(text) == tokens


@pytest.mark.parametrize("text", ["", "8q", "-1", "0", 0, -5, 1.5, True, "8kk", 2**31, [8]])
def test_a_bad_length_is_refused_by_name(text: Any) -> None:
    with pytest.raises(ValueError, match="max_model_len="):
        parse_length(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1024, 1024),
        ("80GiB", 80 << 30),
        ("80G", 80 << 30),
        ("80GB", 80 * 10**9),
        ("1.5 gib", 3 << 29),
        ("512mb", 512 * 10**6),
        ("7B", 7),
        (None, None),
    ],
)
def test_sizes_are_binary_unless_they_end_in_a_plain_b(text: Any, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "iB", "4iB", "80XB", "-1GiB", 0, -1, 2.5, False])
def test_a_bad_size_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="memory="):
        parse_size(text)


@pytest.mark.parametrize(
    ("part", "options"),
    [
        (ModelConfig, {"model": ""}),
        (ModelConfig, {"model": 7}),
        (ModelConfig, {"model": "m", "dtype": "int8"}),
        (ModelConfig, {"model": "m", "dtype": ["float32"]}),
        (ModelConfig, {"model": "m", "max_model_len": "long"}),
        (ModelConfig, {"model": "m", "seed": -1}),
        (ModelConfig, {"model": "m", "tokenizer_mode": "fast"}),
        (LoadConfig, {"load_format": "pickle"}),
        (CacheConfig, {"block_size": 12}),
        (CacheConfig, {"block_size": 512}),
        (CacheConfig, {"gpu_memory_utilization": 0}),
        (CacheConfig, {"gpu_memory_utilization": 1.5}),
        (CacheConfig, {"gpu_memory_utilization": float("nan")}),
        (CacheConfig, {"kv_cache_memory_bytes": "lots"}),
        (CacheConfig, {"num_gpu_blocks_override": 1}),
        (CacheConfig, {"num_gpu_blocks_override": 8, "kv_cache_memory_bytes": 8}),
        (CacheConfig, {"enable_prefix_caching": 1}),
        (SchedulerConfig, {"max_num_seqs": 0}),
        (SchedulerConfig, {"max_num_batched_tokens": 1.0}),
        (SchedulerConfig, {"scheduling_policy": "lifo"}),
        (SchedulerConfig, {"victim": "first"}),
        (SchedulerConfig, {"watermark": 1.0}),
        (SchedulerConfig, {"priority_aging_ms": -1}),
        (DeviceConfig, {"device": "tpu"}),
        (DeviceConfig, {"num_threads": 0}),
        (LogConfig, {"level": "loud"}),
    ],
)
def test_a_bad_value_names_its_field_and_a_remedy(part: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        part(**options)
    field = list(options)[-1] if part is not CacheConfig else next(iter(options))
    assert f"{field}=" in str(caught.value)
    assert "use" in str(caught.value) or "give" in str(caught.value)


def test_near_misses_of_a_choice_are_suggested() -> None:
    with pytest.raises(ValueError, match="did you mean 'bfloat16'"):
        ModelConfig(model="m", dtype="bfloat")


def test_dtypes_have_their_usual_short_names() -> None:
    for alias, dtype in {"bf16": "bfloat16", "half": "float16", "torch.float32": "float32"}.items():
        assert ModelConfig(model="m", dtype=alias).dtype == dtype


def test_configs_are_frozen_and_keyword_only() -> None:
    with pytest.raises(TypeError):
        CacheConfig(16)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        CacheConfig().block_size = 32  # type: ignore[misc]


def test_flat_options_find_their_dataclass() -> None:
    configs = from_options({"model": "m", "block_size": 32, "max_num_seqs": 4, "num_threads": 1})
    assert configs.cache.block_size == 32
    assert configs.scheduler.max_num_seqs == 4
    assert configs.device.num_threads == 1


def test_no_two_dataclasses_share_an_option() -> None:
    assert len(set(option_names())) == len(option_names())


def test_an_unknown_option_suggests_the_nearest() -> None:
    with pytest.raises(TypeError, match="did you mean 'max_num_seqs'"):
        from_options({"model": "m", "max_num_seq": 4})


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="model='no/such/folder'"):
        model_folder("no/such/folder")


def test_tiny_is_the_folder_inside_the_package() -> None:
    assert model_folder("tiny").parts[-3:] == ("octavo", "assets", "tiny")
