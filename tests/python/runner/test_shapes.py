"""Every step finds a shape that holds it and wastes little; there are few of them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models

from octavo.config import CacheConfig, DeviceConfig, LoadConfig, ModelConfig
from octavo.plan import Plan, resolve
from octavo.runner.shapes import MAX_GRAPH_TOKENS, ShapeTable, sharing_options


def step(
    tokens: int,
    rows: int,
    *,
    longest: int = 0,
    greedy: bool = True,
    samples: int = 0,
    admitted: int = 0,
    shares: bool = False,
) -> Any:
    return SimpleNamespace(
        num_tokens=tokens,
        num_rows=rows,
        num_samples=samples or rows,
        max_query_len=longest or (1 if tokens == rows else tokens - rows + 1),
        all_greedy=greedy,
        num_admitted=admitted,
        shares=shares,
    )


@pytest.mark.parametrize(("max_tokens", "max_rows"), [(8192, 1024), (2048, 256), (16, 4), (5, 5), (100, 1)])
def test_every_step_fits_its_shape(max_tokens: int, max_rows: int) -> None:
    table = ShapeTable(max_tokens, max_rows)
    shapes = set()
    for rows in range(1, max_rows + 1):
        for tokens in {rows, rows + 1, rows + 77, max_tokens // 2, max_tokens}:
            if not rows <= tokens <= max_tokens:
                continue
            plan = step(tokens, rows)
            shape = table.of(plan)
            assert (shape.tokens >= tokens, shape.rows >= rows) == (True, True)
            assert shape.tokens <= max_tokens and shape.rows <= max_rows
            assert (shape.queries == 1) == (plan.max_query_len == 1)
            if tokens > 256:
                assert shape.tokens - tokens <= max(tokens // 8, 256)
            shapes.add(shape)
    assert len([shape for shape in shapes if shape.graphed]) <= 120


def test_a_decode_step_has_a_token_a_row() -> None:
    table = ShapeTable(8192, 1024)
    for rows in (1, 3, 9, 200, 257, 1000, 1024):
        shape = table.of(step(rows, rows))
        assert shape.queries == 1
        assert shape.tokens == shape.rows >= rows


def test_samples_of_drafts_count_as_rows() -> None:
    assert ShapeTable(64, 32, 4).of(step(20, 4, longest=5, samples=20)).samples >= 20


def test_the_largest_graph_holds_every_other_one() -> None:
    table = ShapeTable(8192, 1024)
    largest = table.largest_graph
    assert largest.tokens == MAX_GRAPH_TOKENS and largest.graphed
    for rows in (1, 100, 1024):
        for tokens in (rows, 1500, 2048):
            shape = table.of(step(tokens, rows, greedy=False))
            assert shape.tokens <= largest.tokens and shape.rows <= largest.rows
    assert not table.of(step(8192, 3)).graphed


@pytest.mark.parametrize(("max_tokens", "max_rows", "drafts"), [(8192, 1024, 0), (64, 32, 4), (5, 5, 0)])
def test_usual_graphs_are_those_that_decode_steps_take(max_tokens: int, max_rows: int, drafts: int) -> None:
    table = ShapeTable(max_tokens, max_rows, drafts)
    taken = {
        table.of(step(rows, rows, longest=1, greedy=greedy))
        for rows in range(1, min(max_rows, 256) + 1)
        for greedy in (True, False)
    }
    usual = table.usual_graphs
    assert taken <= set(usual)
    assert len(usual) == len(set(usual)) <= 30
    assert [shape.tokens for shape in usual] == sorted((shape.tokens for shape in usual), reverse=True)


def test_who_was_just_admitted_is_in_no_decode_step() -> None:
    table = ShapeTable(8192, 1024, 2)
    for rows in (1, 49, 200):
        assert table.of(step(rows, rows)).queries == 1
        for longest in (1, 3):
            shape = table.of(step(rows, rows, longest=longest, admitted=1))
            assert shape.queries == 0 and shape.tokens >= rows and shape.rows >= rows


def test_rows_that_share_enough_take_the_kernels_of_rows_of_any_length() -> None:
    table = ShapeTable(8192, 1024, 2)
    for rows in (1, 17, 49, 200, 1024):  # with as much room as without
        apart, sharing = (table.of(step(rows, rows, shares=shares)) for shares in (False, True))
        assert sharing == dataclasses.replace(apart, queries=0) != apart


def plan_of(
    folder: Any, *, dtype: str = "bfloat16", device: dict[str, Any] | None = None, **cache: Any
) -> Plan:
    return resolve(
        ModelConfig(model=folder, dtype=dtype),
        LoadConfig(load_format="dummy"),
        CacheConfig(**cache),
        device=DeviceConfig(**device or {"device": "cuda"}),
        available_memory=80 << 30,
    )


HOPPER = (9, 0)


def test_sharing_is_worth_it_by_the_bytes_that_layers_read_again(tmp_path: Any) -> None:
    def threshold(name: str, **changes: Any) -> int:
        folder = tiny_models.save_model(tmp_path / f"{name}{len(changes)}", name, **changes)
        options = sharing_options(plan_of(folder), HOPPER)
        assert options.pop("sharing_min_rows") == 17
        return options.pop("sharing_min_tokens")

    shape = {"head_dim": 128, "num_key_value_heads": 8, "num_attention_heads": 8}
    assert threshold("llama", **shape) == 65536  # 4 KiB a token: those of Llama 3.1 8B and of Qwen3 0.6B
    assert threshold("llama", **{**shape, "head_dim": 64}) == 131072
    # Three of four layers have a window: they share nothing, and are launched all the same.
    hybrid = {"hidden_size": 512, "num_key_value_heads": 8, "num_attention_heads": 8}
    assert threshold("qwen2-hybrid", **hybrid) == 4 * 131072


def test_sharing_is_for_what_the_kernels_can_share(tiny_folder: Any, tmp_path: Any) -> None:
    folder = tiny_models.save_model(tmp_path / "llama", "llama", head_dim=64)
    plan = plan_of(folder)
    assert sharing_options(plan, HOPPER)
    for capability in ((0, 0), (8, 0), (8, 9), (10, 0)):
        assert not sharing_options(plan, capability)
    assert not sharing_options(plan_of(folder, dtype="float32"), HOPPER)
    assert not sharing_options(plan_of(folder, device={"device": "cuda", "batch_invariant": True}), HOPPER)
    assert not sharing_options(plan_of(folder, kv_cache_dtype="fp8"), HOPPER)
    assert not sharing_options(plan_of(folder, block_size=8), HOPPER)
    assert not sharing_options(plan_of(tiny_folder("llama")), HOPPER)  # heads of 32
    assert not sharing_options(plan_of(tiny_folder("deepseek-v2")), HOPPER)
    window = tiny_models.save_model(tmp_path / "window", "mistral-window", head_dim=64)
    assert not sharing_options(plan_of(window), HOPPER)
