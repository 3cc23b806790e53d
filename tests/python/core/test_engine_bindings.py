"""What octavo.core.Engine shows and refuses."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from octavo import core


def engine(**changes: Any) -> core.Engine:
    fields: dict[str, Any] = {
        "num_blocks": 101,
        "block_size": 4,
        "max_model_len": 100,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "vocab_size": 50,
        "hash_seed": 1,
    }
    return core.Engine(core.EngineConfig(**{**fields, **changes}))


def greedy(max_tokens: int = 4) -> core.SamplingParams:
    params = core.SamplingParams()
    params.temperature = 0.0
    params.max_tokens = max_tokens
    return params


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def test_a_request_runs_from_prompt_to_its_last_token() -> None:
    e = engine()
    request = e.add_request(ids(1, 2, 3), greedy(2))
    assert (e.num_waiting, e.num_running) == (1, 0)
    plan = e.begin_step()
    assert plan is not None
    assert (plan.num_tokens, plan.num_rows, plan.num_samples, plan.num_scores) == (3, 1, 1, 0)
    assert (plan.max_query_len, plan.max_logprobs, plan.all_greedy) == (3, -1, True)
    out = e.finish_step(plan.step_id, ids(7))
    assert out.dtype.names == ("request", "token", "sample", "stop_token", "cached_tokens", "finish")
    assert out[0].item() == (request, 7, 0, -1, 0, 0)
    plan = e.begin_step()
    assert plan is not None
    out = e.finish_step(plan.step_id, ids(8))
    assert core.FINISH_REASONS[out[0]["finish"]] == "length"
    assert not e.has_unfinished()
    assert e.begin_step() is None


def test_outputs_outlive_the_next_step() -> None:
    e = engine()
    e.add_request(ids(1, 2, 3), greedy(2))
    first = e.finish_step(e.begin_step().step_id, ids(7))
    e.finish_step(e.begin_step().step_id, ids(8))
    assert first[0]["token"] == 7


def test_columns_are_the_core_s_own_memory() -> None:
    e = engine()
    columns = e.columns(1)  # step 1 is written to host slot 1
    before = columns["token_id"].__array_interface__["data"][0]
    e.add_request(ids(5, 6, 7), greedy())
    plan = e.begin_step()
    assert plan.slot == 1
    assert columns["token_id"][:3].tolist() == [5, 6, 7]  # the arrays of before the step
    assert e.columns(1)["token_id"].__array_interface__["data"][0] == before
    assert columns["token_id"].shape == (64,)
    assert columns["query_start"].shape == (9,)
    assert not columns["token_id"].flags.owndata


def test_every_column_has_the_type_that_executors_expect() -> None:
    types = {name: column.dtype.name for name, column in engine().columns(0).items()}
    floats = {"temperature", "top_p", "min_p", "presence", "frequency", "repetition", "bias_value"}
    longs = {"request", "seed", "history", "mask"}
    for name, dtype in types.items():
        expected = "float32" if name in floats else "uint64" if name in longs else "int32"
        assert dtype == ("int64" if name == "sample_index" else expected), name
    assert len(types) == 34


def test_the_block_table_is_the_core_s_own_memory() -> None:
    e = engine()
    table = e.block_table()
    assert table.shape == (8, 25)
    assert table.dtype == np.int32
    request = e.add_request(ids(*range(9)), greedy())
    plan = e.begin_step()
    row = table[e.columns(plan.slot)["row_slot"][0]]
    assert (row[:3] > 0).all()
    assert (row[3:] == 0).all()
    e.finish_step(plan.step_id, ids(7))
    e.abort(request)
    assert (table == 0).all()


def test_arrays_keep_the_engine_alive() -> None:
    table = engine().block_table()
    columns = engine().columns(0)
    gc.collect()
    assert int(table.sum()) == 0
    assert int(columns["token_id"].sum()) == 0


def test_history_is_an_address_of_the_request_s_tokens() -> None:
    import ctypes

    e = engine()
    params = greedy()
    params.presence_penalty = 1.0
    e.add_request(ids(9, 8, 7), params)
    e.finish_step(e.begin_step().step_id, ids(6))
    plan = e.begin_step()
    columns = e.columns(plan.slot)
    length = int(columns["history_len"][0])
    tokens = (ctypes.c_int32 * length).from_address(int(columns["history"][0]))
    assert list(tokens) == [9, 8, 7, 6]
    assert columns["prompt_len"][0] == 3
    assert columns["presence"][0] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_blocks": 1}, "num_blocks=1"),
        ({"block_size": 3}, "block_size=3"),
        ({"max_model_len": 402}, "max_model_len=402"),
        ({"watermark": float("nan")}, "watermark=nan"),
        ({"policy": "lifo"}, "policy='lifo'"),
        ({"victim": "first"}, "victim='first'"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine(**changes)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", 0, "max_tokens=0"),
        ("temperature", float("nan"), "temperature=nan"),
        ("top_p", 0.0, "top_p=0"),
        ("stop_token_ids", [50], "stop_token_ids contains 50"),
        ("logit_bias", [(-1, 1.0)], "logit_bias names token -1"),
        ("bad_words", [[]], "empty word"),
        ("num_prompt_logprobs", 51, "num_prompt_logprobs=51"),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(field: str, value: Any, message: str) -> None:
    e = engine()
    params = greedy()
    setattr(params, field, value)
    with pytest.raises(ValueError, match=message):
        e.add_request(ids(1), params)
    assert e.num_waiting == 0


def test_prompts_that_cannot_run_are_refused_with_the_numbers() -> None:
    e = engine()
    for prompt, message in [
        (ids(), "prompt is empty"),
        (ids(1, 50), "prompt token 1 is 50"),
        (ids(*[1] * 100), "prompt has 100 tokens, but max_model_len=100"),
        (np.zeros((2, 2), np.int32), "one-dimensional"),
    ]:
        with pytest.raises(ValueError, match=message):
            e.add_request(prompt, greedy())
    with pytest.raises(TypeError):
        e.add_request(np.array([1.5]), greedy())
    assert e.num_waiting == 0


def test_a_full_queue_is_out_of_memory() -> None:
    e = engine(max_queued_requests=1)
    e.add_request(ids(1), greedy())
    with pytest.raises(MemoryError, match="max_queued_requests=1"):
        e.add_request(ids(1), greedy())


def test_ending_what_has_ended_is_a_key_error() -> None:
    e = engine()
    request = e.add_request(ids(1), greedy())
    e.abort(request)
    for end in (e.abort, e.stop):
        with pytest.raises(KeyError, match=str(request)):
            end(request)


def test_steps_finish_once_and_with_all_of_their_tokens() -> None:
    e = engine()
    e.add_request(ids(1), greedy())
    with pytest.raises(RuntimeError, match="step 1 is not open"):
        e.finish_step(1, ids(5))
    plan = e.begin_step()
    with pytest.raises(ValueError, match="has 1 samples, but 2 tokens"):
        e.finish_step(plan.step_id, ids(5, 5))
    with pytest.raises(RuntimeError, match="not the oldest open step"):
        e.fail_step(plan.step_id + 1)
    assert len(e.finish_step(plan.step_id, ids(5))) == 1


def test_slots_and_groups_that_do_not_exist_are_refused() -> None:
    e = engine()
    for slot in (-1, 2):
        with pytest.raises(ValueError, match=f"slot={slot} is out of range: give 0 to 1"):
            e.columns(slot)
    engine(max_steps_in_flight=3).columns(2)
    with pytest.raises(ValueError, match="group=1"):
        e.block_table(1)


def test_drafts_go_into_the_next_row_and_give_an_output_for_each_token_kept() -> None:
    e = engine(max_draft_tokens=4)
    request = e.add_request(ids(1, 2), greedy(9))
    e.finish_step(e.begin_step().step_id, ids(5))
    e.set_drafts(request, ids(6, 7, 8))
    plan = e.begin_step()
    assert (plan.num_rows, plan.num_tokens, plan.num_samples) == (1, 4, 4)
    assert e.columns(plan.slot)["token_id"][:4].tolist() == [5, 6, 7, 8]
    with pytest.raises(RuntimeError, match="drafts in an open step"):
        e.set_drafts(request, ids(1))
    out = e.finish_step(plan.step_id, ids(6, 7, 9, 1))
    assert [(o["token"], o["sample"]) for o in out] == [(6, 0), (7, 1), (9, 2)]
    stats = e.stats()
    assert (stats["draft_rows"], stats["draft_tokens"], stats["accepted_tokens"]) == (1, 3, 2)


def test_drafts_that_cannot_be_are_refused_with_the_reason() -> None:
    with pytest.raises(RuntimeError, match="max_draft_tokens=0"):
        engine().set_drafts(1, ids(5))
    e = engine(max_draft_tokens=2)
    with pytest.raises(KeyError, match="request 77"):
        e.set_drafts(77, ids(5))
    request = e.add_request(ids(1, 2), greedy(9))
    with pytest.raises(ValueError, match="drafts has 3 tokens: give at most max_draft_tokens=2"):
        e.set_drafts(request, ids(1, 2, 3))
    with pytest.raises(ValueError, match="draft 1 is -1"):
        e.set_drafts(request, ids(1, -1))


def test_a_failed_step_ends_its_requests() -> None:
    e = engine()
    request = e.add_request(ids(1), greedy())
    out = e.fail_step(e.begin_step().step_id)
    assert [(o["request"], core.FINISH_REASONS[o["finish"]]) for o in out] == [(request, "error")]
    assert e.stats()["failed_steps"] == 1


def test_events_name_content_by_hash_and_parent() -> None:
    e = engine(enable_kv_events=True)
    e.add_request(ids(*range(8)), greedy(1))
    e.finish_step(e.begin_step().step_id, ids(5))
    first, second = e.take_events()
    assert (first["kind"], first["token_ids"]) == ("stored", [0, 1, 2, 3])
    assert second["parent"] == first["hash"]
    assert len(first["hash"]) == 16
    assert e.take_events() == []
    assert e.reset_prefix_cache()
    assert [event["kind"] for event in e.take_events()] == ["cleared"]


def blocks_of(e: core.Engine, plan: core.StepPlan) -> list[tuple[set[int], set[int]]]:
    """Of each row the blocks that it writes, and all that it reads."""
    columns, table = e.columns(plan.slot), e.block_table(0)
    found = []
    for row in range(plan.num_rows):
        first, end = columns["query_start"][row : row + 2]
        line = table[columns["row_slot"][row]]
        written = {int(line[position // 4]) for position in columns["position"][first:end]}
        found.append((written, {int(block) for block in line[: -(-columns["seq_len"][row] // 4)]}))
    return found


@pytest.mark.parametrize("depth", [1, 2])
def test_only_who_was_just_admitted_reads_what_another_row_writes(depth: int) -> None:
    """Prompts with much in common over a pool that is too small, steps ahead of their tokens."""
    draw = np.random.default_rng(4)
    e = engine(num_blocks=41, max_num_batched_tokens=24, max_steps_in_flight=depth)
    shared = [draw.integers(0, 50, 24) for _ in range(3)]
    read_by_admitted, opened, steps = 0, [], 0
    while steps < 600:
        if e.num_waiting < 4:
            start = shared[draw.integers(3)][: draw.integers(1, 25)]
            prompt = [start, draw.integers(0, 50, draw.integers(0, 3))]
            e.add_request(np.concatenate([*prompt, [7]]).astype(np.int32), greedy(int(draw.integers(1, 30))))
        while len(opened) < depth and (plan := e.begin_step()) is not None:
            rows = blocks_of(e, plan)
            for row, (_, read) in enumerate(rows):
                foreign = any(read & written for other, (written, _) in enumerate(rows) if other != row)
                if row < plan.num_rows - plan.num_admitted:
                    assert not foreign
                read_by_admitted += foreign
            opened.append((plan.step_id, plan.num_samples))
            steps += 1
        if opened:
            step, samples = opened.pop(0)
            e.finish_step(step, draw.integers(0, 50, samples).astype(np.int32))
    assert read_by_admitted > 0
    assert e.stats()["preemptions"] > 0
