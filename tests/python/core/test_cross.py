"""Cross-attention groups through the bindings: what a plan tells an encoder-decoder model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo import core

LONGEST = 10  # embeddings; three blocks of four


def make_engine(**changes: Any) -> core.Engine:
    options = {
        "num_blocks": 30,
        "max_model_len": 40,
        "max_num_batched_tokens": 32,
        "vocab_size": 50,
        "groups": [
            core.CacheGroup("full", block_size=4),
            core.CacheGroup("cross", block_size=4, encoder_len=LONGEST),
        ],
    }
    return core.Engine(core.EngineConfig(**{**options, **changes}))


def audio(content: bytes, embeddings: int = LONGEST) -> core.EncoderItem:
    return core.EncoderItem(content * 16, 0, 0, embeddings, cross=True)


def add(engine: core.Engine, items: list[core.EncoderItem], salt: str = "") -> int:
    params = core.SamplingParams()
    params.max_tokens = 2
    prompt = np.arange(9, dtype=np.int32)
    return engine.add_request(prompt, params, cache_salt=salt, encoder_items=items)


def run(engine: core.Engine) -> list[tuple[int, int, int]]:
    """Runs until nothing is left to do; what was to be encoded."""
    inputs = []
    while (plan := engine.begin_step()) is not None:
        inputs += plan.encoder_inputs
        engine.finish_step(plan.step_id, np.full(plan.num_samples, 7, np.int32))
        engine.check_invariants()
    return inputs


def test_a_plan_says_what_to_encode_and_where_its_keys_go() -> None:
    engine = make_engine()
    first, second = add(engine, [audio(b"a")]), add(engine, [audio(b"b", 3)])
    plan = engine.begin_step()
    assert plan is not None
    assert plan.encoder_inputs == [(first, 0, -1)]  # one step encodes encoder_len embeddings
    assert plan.encoder_rows == [0]
    columns = engine.columns(plan.slot)
    assert columns["cross_len"][: plan.num_rows].tolist() == [LONGEST]
    row = engine.block_table(1)[columns["row_slot"][0]]
    assert row.shape == (3,) and len(set(row.tolist())) == 3 and 0 not in row
    engine.finish_step(plan.step_id, np.full(plan.num_samples, 7, np.int32))
    plan = engine.begin_step()
    assert plan is not None
    assert plan.encoder_inputs == [(second, 0, -1)]
    assert plan.encoder_rows == [1]
    columns = engine.columns(plan.slot)
    assert columns["cross_len"][: plan.num_rows].tolist() == [LONGEST, 3]
    assert np.count_nonzero(engine.block_table(1)[columns["row_slot"][1]]) == 1
    assert engine.block_table(1)[columns["row_slot"][0]].tolist() == row.tolist()
    engine.finish_step(plan.step_id, np.full(plan.num_samples, 7, np.int32))


def test_what_is_cached_of_an_item_is_not_encoded_again() -> None:
    engine = make_engine()
    first = add(engine, [audio(b"a")])
    assert run(engine) == [(first, 0, -1)]
    add(engine, [audio(b"a")])
    assert run(engine) == []
    stats = engine.stats()
    assert (stats["encoder_queries"], stats["encoder_hits"], stats["prefix_hits"]) == (2, 1, 8)
    other = add(engine, [audio(b"b")])
    assert run(engine) == [(other, 0, -1)]
    assert engine.stats()["prefix_hits"] == 8  # the same prompt behind another item is another prefix
    salted = add(engine, [audio(b"a")], salt="x")
    assert run(engine) == [(salted, 0, -1)]


def test_every_request_brings_exactly_one_item_that_fits() -> None:
    engine = make_engine()
    with pytest.raises(ValueError, match="encoder_items has 0 cross items: .* exactly one"):
        add(engine, [])
    with pytest.raises(ValueError, match=r"has embeddings=11: the cross groups hold 1 to encoder_len=10"):
        add(engine, [audio(b"a", 11)])
    with pytest.raises(ValueError, match="has no cross group"):
        add(make_engine(groups=[]), [audio(b"a")])
    with pytest.raises(ValueError, match="start=0, length=4"):
        add(engine, [core.EncoderItem(b"a" * 16, 0, 4, 4, cross=True)])
    with pytest.raises(ValueError, match="embeddings=10: one step encodes at most 8"):
        add(make_engine(encoder_budget=8), [audio(b"a")])


def test_a_configuration_says_what_is_wrong_with_a_cross_group() -> None:
    full = core.CacheGroup("full", block_size=4)
    for groups, text in [
        ([full, core.CacheGroup("cross")], r"groups\[1\]\.encoder_len=0"),
        ([core.CacheGroup("full", encoder_len=3)], r"groups\[0\]\.encoder_len=3"),
        ([core.CacheGroup("cross", encoder_len=3)], "groups are all of kind cross"),
        ([full, core.CacheGroup("cross", encoder_len=200)], "max_model_len=40 does not fit"),
    ]:
        with pytest.raises(ValueError, match=text):
            make_engine(groups=groups, num_blocks=12)
