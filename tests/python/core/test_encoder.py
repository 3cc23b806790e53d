"""Images and audio through the bindings: what a plan tells whoever runs the encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo import core


def make_engine(**changes: Any) -> core.Engine:
    options = {
        "num_blocks": 60,
        "block_size": 4,
        "max_model_len": 100,
        "max_num_batched_tokens": 32,
        "vocab_size": 50,
        "encoder_cache_size": 16,
    }
    return core.Engine(core.EngineConfig(**{**options, **changes}))


def add(engine: core.Engine, items: list[core.EncoderItem], length: int = 20) -> int:
    params = core.SamplingParams()
    params.max_tokens = 2
    return engine.add_request(np.arange(length, dtype=np.int32), params, encoder_items=items)


def test_a_plan_says_what_to_encode_and_which_tokens_take_it() -> None:
    engine = make_engine()
    request = add(engine, [core.EncoderItem(b"a" * 16, 3, 6, 6), core.EncoderItem(b"b" * 16, 12, 4, 2)])
    plan = engine.begin_step()
    assert plan is not None
    first, second = (entry for _, _, entry in plan.encoder_inputs)
    assert plan.encoder_inputs == [(request, 0, first), (request, 1, second)]
    assert plan.encoder_spans == [(3, 6, 0, first, 0, 0), (12, 4, 0, second, 1, 0)]
    assert plan.encoder_evicted == []
    assert engine.stats()["encoder_embeddings"] == 8
    engine.finish_step(plan.step_id, np.array([1], np.int32))
    engine.reset_encoder_cache()
    assert engine.stats()["encoder_entries"] == 0


def test_the_hash_has_sixteen_bytes() -> None:
    with pytest.raises(ValueError, match="hash has 5 bytes: give 16"):
        core.EncoderItem(b"short", 0, 4, 4)


def test_an_item_that_can_never_be_encoded_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder_items\[0\] has embeddings=17"):
        add(make_engine(), [core.EncoderItem(b"a" * 16, 0, 4, 17)])
    with pytest.raises(ValueError, match="encoder_cache_size is 0"):
        add(make_engine(encoder_cache_size=0), [core.EncoderItem(b"a" * 16, 0, 4, 4)])
