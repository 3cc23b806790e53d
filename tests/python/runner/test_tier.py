"""The host tier beside a device whose copies and steps come late, in any order streams allow, or fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from runner.late_device import LateDevice, LateSteps
from runner.test_device_runner import engine_of, run, tokens

from octavo import SamplingParams
from octavo.engine.llm_engine import LLMEngine
from octavo.runner.device_runner import DeviceRunner
from octavo.runner.runner import ModelRunner
from octavo.runner.tier import TierCopier

TIGHT = {"blocks": 24, "max_num_seqs": 8}
TIER_BYTES = 8 << 20


def late_engine(folder: Path, device: LateDevice, *, size: int = TIER_BYTES, **limits: Any) -> LLMEngine:
    engine = engine_of(folder, DeviceRunner, **limits)
    runner: Any = engine.runner
    runner.add_host_tier(engine.core, size, device)
    return LLMEngine(engine.plan, core_engine=engine.core, runner=LateSteps(runner, device), tokenizer=None)


def work(seed: int) -> tuple[list[list[int]], list[SamplingParams]]:
    prompts = tiny_models.random_prompts(14, low=20, high=70, seed=seed)
    prompts += [prompts[i][:32] + prompts[i + 1] for i in range(4)]
    return prompts, [SamplingParams(temperature=0, max_tokens=4 + 2 * i, ignore_eos=True) for i in range(18)]


@pytest.mark.parametrize("hurry", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen2-hybrid", "deepseek-v2"])
def test_late_copies_change_no_token(tiny_folder: Any, name: str, hurry: float) -> None:
    prompts, params = work(31)
    expected = tokens(run(engine_of(tiny_folder(name), ModelRunner), prompts, params))
    engine = late_engine(tiny_folder(name), LateDevice(5, hurry=hurry), **TIGHT)
    for _ in range(3):
        assert tokens(run(engine, prompts, params)) == expected
    stats, tier = engine.core.stats(), engine.core.host_tier_stats()
    assert stats["preemptions"] > 0
    assert tier["stored_blocks"] > 20 and tier["loaded_blocks"] > 20
    assert tier["failed_blocks"] == 0


def test_a_tier_that_gives_blocks_up_while_they_are_copied_changes_no_token(tiny_folder: Any) -> None:
    prompts, params = work(32)
    expected = tokens(run(engine_of(tiny_folder("llama"), ModelRunner), prompts, params))
    block = engine_of(tiny_folder("llama"), DeviceRunner).runner.pool[0].nbytes  # type: ignore[attr-defined]
    engine = late_engine(tiny_folder("llama"), LateDevice(6), size=12 * block, **TIGHT)
    for _ in range(3):
        assert tokens(run(engine, prompts, params)) == expected
    tier = engine.core.host_tier_stats()
    assert tier["evicted_blocks"] > 20 and tier["loaded_blocks"] > 0


@pytest.mark.parametrize("seed", range(4))
def test_copies_that_fail_are_computed_again_and_end_no_request(tiny_folder: Any, seed: int) -> None:
    prompts, params = work(33)
    expected = tokens(run(engine_of(tiny_folder("llama"), ModelRunner), prompts, params))
    device = LateDevice(seed, failing=0.05)
    engine = late_engine(tiny_folder("llama"), device, **TIGHT)
    for _ in range(4):
        assert tokens(run(engine, prompts, params)) == expected
    tier = engine.core.host_tier_stats()
    assert device.failures > 0
    assert tier["failed_blocks"] > 0 and tier["loaded_blocks"] > 0
    assert engine.core.stats()["finished_error"] == 0


def test_an_engine_that_has_nothing_but_loads_waits_for_them(tiny_folder: Any) -> None:
    prompts, params = work(34)
    device = LateDevice(7, hurry=0.0)
    engine = late_engine(tiny_folder("llama"), device, **TIGHT)
    expected = tokens(run(engine, prompts, params))
    for prompt, one, want in zip(prompts, params, expected):
        assert tokens(run(engine, [prompt], [one])) == [want]
    assert engine.core.host_tier_stats()["loaded_blocks"] > 0


class NoStepWaits(TierCopier):
    def begin(self, batch: int) -> None:
        asked, self._asked = self._asked, [queue for queue in self._asked if queue is not self._out]
        super().begin(batch)
        self._batches[-1][1].extend(queue.mark() for queue in asked if queue is self._out)


class NothingComesAfterWhatLeaves(TierCopier):
    def into(self, runs: Any) -> None:
        self._copy(self._into, runs, to_pool=True)


class EndsTooSoon(TierCopier):
    def ended(self) -> int:
        return self._batches[-1][0] if self._batches else self._ended


@pytest.mark.parametrize("wrong", [NoStepWaits, NothingComesAfterWhatLeaves, EndsTooSoon])
def test_an_order_that_is_not_kept_is_found_out(
    tiny_folder: Any, monkeypatch: pytest.MonkeyPatch, wrong: type[TierCopier]
) -> None:
    """What these tests rest on: the late device shows what waits too little."""
    name, found = "mistral-window", False
    prompts, params = work(31)
    expected = tokens(run(engine_of(tiny_folder(name), ModelRunner), prompts, params))
    monkeypatch.setattr("octavo.runner.device_runner.TierCopier", wrong)
    for hurry in (0.0, 0.3):
        engine = late_engine(tiny_folder(name), LateDevice(5, hurry=hurry), **TIGHT)
        found |= any(tokens(run(engine, prompts, params)) != expected for _ in range(3))
    assert found


def test_what_a_copier_raises_at_the_end_is_no_matter(tiny_folder: Any) -> None:
    """An engine that goes away waits for its copies, also where that fails."""
    prompts, params = work(35)
    device = LateDevice(8, hurry=0.0)
    engine = late_engine(tiny_folder("llama"), device, **TIGHT)
    run(engine, prompts, params)
    device._failing = 1.0
    engine.runner.runner.pool.zero_()  # type: ignore[attr-defined]
    del engine  # no crash, no exception in its destructor


def test_a_tier_takes_memory_of_bytes_alone(tiny_folder: Any) -> None:
    engine = engine_of(tiny_folder("llama"), DeviceRunner)
    with pytest.raises(TypeError):
        engine.core.add_device_tier(object(), np.zeros(64, dtype=np.float32), 64)
    with pytest.raises(ValueError, match="a host tier of 64 bytes holds no block"):
        engine.core.add_device_tier(object(), np.zeros(64, dtype=np.uint8), 128)


def test_an_empty_copier_has_ended_nothing() -> None:
    copier = TierCopier(torch.zeros(8, dtype=torch.uint8), np.zeros(8, dtype=np.uint8), LateDevice(1))
    assert copier.ended() == 0
    copier.out(np.array([[0, 0, 8]]))
    copier.begin(1)
    copier.drain()
    assert copier.ended() == 1
