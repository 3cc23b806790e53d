"""The device's runner under the loop that steps on a thread of its own, on CPU tensors and late graphs."""

from __future__ import annotations

import dataclasses
import functools
import gc
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from runner.late_graphs import LateGraphs, LateQueue
from runner.test_device_runner import DRAFTS, LIMIT_IDS, LIMITS, engine_of, repetitive, run, tokens

from octavo import SamplingParams, core
from octavo.engine.llm_engine import LLMEngine
from octavo.runner.device_runner import DeviceRunner
from octavo.runner.runner import ModelRunner
from octavo.runner.shapes import StepShape
from octavo.sampling_params import RequestOutputKind

QUEUES: weakref.WeakKeyDictionary[LLMEngine, LateQueue] = weakref.WeakKeyDictionary()


def looped(
    folder: Path,
    *,
    depth: int | None = None,
    seed: int = 1,
    graphs: type[LateGraphs] = LateGraphs,
    **limits: Any,
) -> LLMEngine:
    """An engine whose captured steps are launched by a loop."""
    queue = LateQueue(seed)

    def make(plan: Any, model: Any, engine: core.Engine) -> DeviceRunner:
        runner = DeviceRunner(plan, model, engine)
        runner.use_graphs(functools.partial(graphs, queue), queue.address)
        launch = queue.in_turn(runner.launch)
        runner.launch = launch  # type: ignore[method-assign]
        return runner

    engine = engine_of(folder, make, looped=True, depth=depth, **limits)
    QUEUES[engine] = queue
    return engine


def greedy(count: int, **changes: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": count, "ignore_eos": True, **changes})


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("limits", LIMITS, ids=LIMIT_IDS)
@pytest.mark.parametrize("name", ["llama", "qwen2-hybrid", "bamba"])
def test_tokens_are_those_of_steps_driven_from_python(
    tiny_folder: Any, name: str, limits: dict[str, Any], depth: int
) -> None:
    if name == "bamba" and "blocks" in limits:
        limits = {**limits, "blocks": 11}
    prompts = tiny_models.random_prompts(12, low=1, high=60, seed=31)
    params = [greedy(5 + 3 * i) for i in range(12)]
    params[4] = greedy(30, temperature=0.9, seed=4, top_p=0.8, logit_bias={17: 3.0})
    expected = tokens(run(engine_of(tiny_folder(name), ModelRunner, **limits), prompts, params))
    engine = looped(tiny_folder(name), depth=depth, **limits)
    assert tokens(run(engine, prompts, params)) == expected
    first = QUEUES[engine].launches
    assert tokens(run(engine, prompts, params)) == expected  # from the prefix cache
    assert QUEUES[engine].launches > first > 0
    engine.core.check_invariants()


def test_python_launches_no_decode_step_whose_graph_is_there(tiny_folder: Any) -> None:
    prompts = tiny_models.random_prompts(9, low=1, high=60, seed=36)
    params = [greedy(5 + 3 * i) for i in range(9)]
    expected = tokens(run(engine_of(tiny_folder("llama"), ModelRunner), prompts, params))
    engine = looped(tiny_folder("llama"))
    runner: Any = engine.runner
    runner.run_empty(runner._shapes.usual_graphs)
    shapes, launch = [], runner._run
    runner._run = lambda shape: (shapes.append(shape), launch(shape))[1]
    assert tokens(run(engine, prompts, params)) == expected
    assert shapes and all(shape.queries != 1 for shape in shapes)
    engine.core.check_invariants()


def test_the_loop_chooses_as_python_does_for_rows_that_share(tiny_folder: Any) -> None:
    sharing = {"sharing_min_tokens": 10 * 256, "sharing_min_rows": 17}
    replayed: list[StepShape] = []

    class Recorded(LateGraphs):
        def _replay(self, shape: StepShape) -> None:
            replayed.append(shape)
            super()._replay(shape)

    # Twenty go on from one prompt; seven of them for longer than the others.
    (prefix,) = tiny_models.random_prompts(1, low=280, high=280, seed=37)
    prompts = [[*prefix, 5 + i] for i in range(20)]
    params = [greedy(8 if i % 3 else 20 + i) for i in range(20)]
    expected = tokens(run(engine_of(tiny_folder("llama"), ModelRunner, length=400), prompts, params))
    engine = looped(tiny_folder("llama"), graphs=Recorded, length=400, sharing=sharing)
    runner: Any = engine.runner
    chosen: list[StepShape] = []
    choose = runner._shapes.of
    runner._shapes.of = lambda plan: (chosen.append(choose(plan)), chosen[-1])[1]
    assert tokens(run(engine, prompts, params)) == expected
    # The first step of a shape is Python's, and those after it are the loop's.
    sharing, alone = StepShape(24, 24, 24, 0, True), StepShape(8, 8, 8, 1, True)
    assert chosen.count(sharing) == chosen.count(alone) == 1
    assert len(chosen) == len(set(chosen))
    assert replayed.count(sharing) > 3 and replayed.count(alone) > 3
    assert set(replayed) <= set(chosen)


def test_graphs_whose_handles_nobody_knows_are_launched_from_python(tiny_folder: Any) -> None:
    queue = LateQueue(1)

    def make(plan: Any, model: Any, engine: core.Engine) -> DeviceRunner:
        runner = DeviceRunner(plan, model, engine)
        runner.use_graphs(functools.partial(LateGraphs, queue), None)
        assert runner.graph_steps is None
        return runner

    prompts = tiny_models.random_prompts(6, low=1, high=60, seed=33)
    expected = tokens(run(engine_of(tiny_folder("llama"), ModelRunner), prompts, [greedy(20)] * 6))
    assert tokens(run(engine_of(tiny_folder("llama"), make), prompts, [greedy(20)] * 6)) == expected
    assert queue.launches == 0


def test_what_a_graph_cannot_do_is_launched_from_python_in_its_order(tiny_folder: Any) -> None:
    """Penalties, masks, log-probabilities and scores, beside requests that want none of them."""
    kinds: list[dict[str, Any]] = [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.7, "temperature": 0.9, "seed": 2},
        {"allowed_token_ids": list(range(100, 140))},
        {"logprobs": 3, "prompt_logprobs": 2},
        {"logit_bias": {17: 5.0, 18: -100.0}},
        {},
    ]
    prompts = tiny_models.random_prompts(len(kinds), low=20, high=60, seed=32)
    params = [greedy(8 + 9 * i, **kind) for i, kind in enumerate(kinds)]
    want = run(engine_of(tiny_folder("llama"), ModelRunner, max_num_batched_tokens=48), prompts, params)
    engine = looped(tiny_folder("llama"), max_num_batched_tokens=48)
    got = run(engine, prompts, params)
    assert tokens(got) == tokens(want)
    assert QUEUES[engine].launches > 0
    for mine, theirs in zip(got, want):
        assert len(mine.outputs[0].logprobs or []) == len(theirs.outputs[0].logprobs or [])
        for a, b in zip(mine.outputs[0].logprobs or [], theirs.outputs[0].logprobs or []):
            assert a.keys() == b.keys()
        assert len(mine.prompt_logprobs or []) == len(theirs.prompt_logprobs or [])


def test_drafts_are_verified_in_graphs(tiny_folder: Any) -> None:
    params = [greedy(9 + 3 * i) for i in range(12)]
    want = run(engine_of(tiny_folder("llama"), ModelRunner), repetitive(33), params)
    engine = looped(tiny_folder("llama"), speculative_config=DRAFTS)
    for _ in range(2):
        assert tokens(run(engine, repetitive(33), params)) == tokens(want)
    assert engine.core.stats()["accepted_tokens"] > 0


def test_every_token_is_streamed_once_and_in_order(tiny_folder: Any) -> None:
    engine = looped(tiny_folder("llama"))
    prompts = tiny_models.random_prompts(4, low=5, high=20, seed=34)
    final = tokens(run(engine, prompts, [greedy(40)] * 4))
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, greedy(40, output_kind=RequestOutputKind.DELTA))
    seen: list[list[int]] = [[] for _ in prompts]
    while engine.has_unfinished_requests():
        outputs = engine.step()
        assert len({output.request_id for output in outputs}) == len(outputs)
        for output in outputs:
            assert len(output.outputs[0].token_ids) <= 1
            seen[int(output.request_id)] += output.outputs[0].token_ids
    assert seen == final


def test_requests_come_and_go_while_the_loop_runs(tiny_folder: Any) -> None:
    prompts = tiny_models.random_prompts(10, low=5, high=40, seed=35)
    alone = engine_of(tiny_folder("llama"), ModelRunner)
    expected = [tokens(run(alone, [prompt], [greedy(30)]))[0] for prompt in prompts]
    engine = looped(tiny_folder("llama"), max_num_seqs=4)
    got: dict[str, list[int]] = {}

    def step() -> None:
        for output in engine.step():
            if output.outputs[0].finish_reason == "length":
                got[output.request_id] = list(output.outputs[0].token_ids)

    for i, prompt in enumerate(prompts):
        engine.add_request(f"kept-{i}", prompt, greedy(30))
        engine.add_request(f"gone-{i}", prompt, greedy(30))
        for _ in range(i % 5):
            step()
        engine.abort_request(f"gone-{i}")
    while engine.has_unfinished_requests():
        step()
    assert [got[f"kept-{i}"] for i in range(10)] == expected
    assert not [name for name in got if name.startswith("gone")]
    stats = engine.core.stats()
    assert (stats["running"], stats["free_blocks"]) == (0, stats["total_blocks"])


@pytest.mark.parametrize("call", ["copy", "launch", "mark", "wait"])
def test_a_device_that_fails_ends_the_open_steps_and_the_engine_goes_on(
    tiny_folder: Any, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    engine = looped(tiny_folder("llama"))
    prompts = tiny_models.random_prompts(3, low=5, high=20, seed=36)
    want = tokens(run(engine, prompts, [greedy(20)] * 3))
    QUEUES[engine].errors[call] = [0, 0, 0, 7]
    failed = run(engine, prompts, [greedy(20)] * 3)
    assert {output.outputs[0].finish_reason for output in failed} == {"error"}
    assert "the device is lost" in str(failed[0].outputs[0].stop_reason)
    assert "a step of 3 requests failed" in caplog.text
    assert tokens(run(engine, prompts, [greedy(20)] * 3)) == want
    engine.core.check_invariants()


def test_a_step_that_python_cannot_launch_ends_its_requests(tiny_folder: Any) -> None:
    engine = looped(tiny_folder("llama"))
    runner: Any = engine.runner
    launch, asked = runner.launch, greedy(20, logprobs=1)

    def fail(_: Any) -> Any:
        raise MemoryError("no memory for the logits")

    want = tokens(run(engine, [[5, 6, 7]], [asked]))
    for error in (fail, interrupt):
        runner.launch = error
        engine.add_request("a", [5, 6, 7], asked)
        outputs = []
        while engine.has_unfinished_requests():
            try:
                outputs += engine.step()
            except KeyboardInterrupt:
                assert error is interrupt
        assert outputs[-1].outputs[0].finish_reason == "error"
        reason = "MemoryError: no memory for the logits" if error is fail else "interrupted"
        assert outputs[-1].outputs[0].stop_reason == reason
        runner.launch = launch
        assert tokens(run(engine, [[5, 6, 7]], [asked])) == want


def interrupt(_: Any) -> Any:
    raise KeyboardInterrupt


def test_ctrl_c_while_outputs_are_made_leaves_the_engine_usable(tiny_folder: Any) -> None:
    engine = looped(tiny_folder("llama"))
    take: Callable[..., Any] = engine._take
    engine.add_request("a", [5, 6, 7], greedy(60))
    engine.step()

    def interrupted(*_: Any, **__: Any) -> Any:
        engine._take = take  # type: ignore[method-assign]
        raise KeyboardInterrupt

    engine._take = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    last = None
    while engine.has_unfinished_requests():
        last = (engine.step() or [last])[-1]
    assert last is not None and last.outputs[0].finish_reason == "error"
    assert len(tokens(run(engine, [[5, 6, 7]], [greedy(6)]))[0]) == 6


def test_a_pause_holds_requests_back(tiny_folder: Any) -> None:
    engine = looped(tiny_folder("llama"))
    engine.add_request("a", [5, 6, 7], greedy(50))
    engine.step()
    engine.pause()
    with pytest.raises(RuntimeError, match="is paused"):
        while True:
            engine.step()
    engine.resume()
    last = None
    while engine.has_unfinished_requests():
        last = (engine.step() or [last])[-1]
    assert last is not None and len(last.outputs[0].token_ids) == 50


def test_the_loop_runs_ahead_of_its_caller_but_not_for_ever(tiny_folder: Any) -> None:
    engine = looped(tiny_folder("llama"))
    run(engine, [[5, 6, 7]], [greedy(4)])
    before = engine.core.stats()["steps"]
    engine.add_request("a", [5, 6, 7], greedy(120))
    engine.step()
    deadline = time.monotonic() + 20
    while engine.core.stats()["steps"] < before + 32 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert engine.core.stats()["steps"] == before + 32
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    assert len(outputs[-1].outputs[0].token_ids) == 120


def test_an_engine_that_is_dropped_ends_its_thread(tiny_folder: Any) -> None:
    gc.collect()
    threads = _native_threads()
    engine = looped(tiny_folder("llama"))
    assert _native_threads() == threads + 1
    engine.add_request("a", [5, 6, 7], greedy(100))
    engine.step()
    del engine
    gc.collect()
    assert _native_threads() == threads


def _native_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_a_plain_request_beside_one_with_log_probabilities_keeps_its_tokens(tiny_folder: Any) -> None:
    engine = looped(tiny_folder("llama"))
    plain = greedy(30)
    want = tokens(run(engine, [[5, 6, 7, 8]], [plain]))[0]
    both = run(engine, [[5, 6, 7, 8]] * 2, [plain, dataclasses.replace(plain, max_tokens=7, logprobs=2)])
    assert tokens(both) == [want, want[:7]]
