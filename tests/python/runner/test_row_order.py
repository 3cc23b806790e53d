"""Rows that share a prompt stand together, and every request gets what it gets where they do not."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
from runner.test_device_runner import engine_of, run, tokens
from runner.test_step_loop import looped

from octavo import SamplingParams
from octavo.engine.llm_engine import LLMEngine
from octavo.outputs import RequestOutput
from octavo.runner.device_runner import DeviceRunner
from octavo.runner.runner import ModelRunner

TOGETHER = {"sharing_min_tokens": 1, "sharing_min_rows": 2}
RUNNERS: dict[str, Any] = {"host": ModelRunner, "device": DeviceRunner, "looped": None}
FEW = {"blocks": 90, "max_num_seqs": 20}  # so that somebody steps back


def interleaved() -> list[list[int]]:
    """Eight requests of each of three prompts in turns, with tokens of their own."""
    shared = tiny_models.random_prompts(3, low=280, high=300, seed=41)
    own = tiny_models.random_prompts(24, low=1, high=20, seed=42)
    return [shared[i % 3] + tail for i, tail in enumerate(own)]


def varied(i: int) -> SamplingParams:
    """Requests of all kinds, so that none would get along with another's columns."""
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "seed": i, "top_p": 0.9},
        {"repetition_penalty": 1.4},
        {"logprobs": i % 4},
        {"logit_bias": {20 + i: 4.0, 60 + i: 3.0}},
        {"temperature": 1.2, "seed": 100 + i, "top_k": 20, "logprobs": 2},
        {"allowed_token_ids": list(range(80 + i, 130 + i))},
    ]
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 8 + i, "ignore_eos": True, **kinds[i % 7]})


def engine_with(folder: Any, runner: str, **options: Any) -> LLMEngine:
    if runner == "looped":
        return looped(folder, length=400, **options)
    return engine_of(folder, RUNNERS[runner], length=400, **options)


def note_moves(engine: LLMEngine) -> list[bool]:
    """Of each step that Python launches from now on: whether it shares and moved rows for it."""
    moved: list[bool] = []
    runner: Any = engine.runner
    launch = runner.launch

    def noted(plan: Any) -> Any:
        arrival = list(engine._samples)
        requests = engine.core.columns(plan.slot)["request"][: plan.num_rows - plan.num_admitted].tolist()
        rows = [arrival.index(request) for request in requests if request in arrival]
        moved.append(plan.shares and rows != sorted(rows))
        return launch(plan)

    runner.launch = noted
    return moved


def logprobs_of(outputs: list[RequestOutput]) -> list[list[dict[int, float]]]:
    found = [output.outputs[0].logprobs or [] for output in outputs]
    return [[{t: row.logprob for t, row in position.items()} for position in each] for each in found]


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(("name", "limits"), [("llama", {}), ("llama", FEW), ("bamba", {})])
def test_the_order_of_rows_changes_nobody_s_tokens(
    tiny_folder: Any, name: str, runner: str, limits: dict[str, Any]
) -> None:
    prompts, params = interleaved(), [varied(i) for i in range(24)]
    want = run(engine_with(tiny_folder(name), "host"), prompts, params)
    engine = engine_with(tiny_folder(name), runner, sharing=TOGETHER, **limits)
    moved = note_moves(engine)
    for _ in range(2):  # the second time from the prefix cache
        got = run(engine, prompts, params)
        assert tokens(got) == tokens(want)
        for mine, theirs in zip(logprobs_of(got), logprobs_of(want)):
            assert [set(position) for position in mine] == [set(position) for position in theirs]
            for a, b in zip(mine, theirs):
                assert a == pytest.approx(b, abs=1e-4)
    engine.core.check_invariants()
    assert sum(moved) > 4
    assert (engine.core.stats()["preemptions"] > 0) == bool(limits)


def test_who_comes_and_goes_changes_nobody_s_tokens(tiny_folder: Any) -> None:
    prompts, params = interleaved(), [varied(i) for i in range(24)]
    want = tokens(run(engine_with(tiny_folder("llama"), "host"), prompts, params))
    for runner in RUNNERS:
        engine = engine_with(tiny_folder("llama"), runner, sharing=TOGETHER)
        moved = note_moves(engine)
        for i in range(14):
            engine.add_request(str(i), prompts[i], params[i])
        got: dict[str, list[int]] = {}
        for step in range(400):
            if step < 10:
                engine.add_request(str(14 + step), prompts[14 + step], params[14 + step])
            if step % 2 and step < 12:
                engine.abort_request(str(2 * step))
            for output in engine.step():
                if output.outputs[0].finish_reason == "length":
                    got[output.request_id] = list(output.outputs[0].token_ids)
            if not engine.has_unfinished_requests():
                break
        gone = {str(2 * step) for step in range(1, 12, 2)}
        assert got == {str(i): want[i] for i in range(24) if str(i) not in gone}
        assert sum(moved) > 4
