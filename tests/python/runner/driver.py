"""A core engine and a runner with nothing around them: requests as token ids, tokens back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from octavo.config import CacheConfig, DeviceConfig, LoadConfig, ModelConfig, SchedulerConfig
from octavo.core import Engine, EngineConfig, SamplingParams
from octavo.models.registry import build
from octavo.plan import resolve
from octavo.runner.batch import LogprobBatch, PromptLogprobs, StepResult
from octavo.runner.runner import ModelRunner
from octavo.weights.loader import load_weights


def greedy(max_tokens: int = 16, **changes: Any) -> SamplingParams:
    return params(max_tokens=max_tokens, temperature=0.0, **changes)


def params(**changes: Any) -> SamplingParams:
    """Sampling parameters that never meet an end token."""
    made = SamplingParams()
    made.ignore_eos = True
    for name, value in changes.items():
        assert hasattr(made, name), name
        setattr(made, name, value)
    return made


class Driver:
    def __init__(
        self,
        folder: Path,
        *,
        dtype: str = "float32",
        blocks: int | None = None,
        length: int = 128,
        cache: Mapping[str, Any] | None = None,
        **limits: Any,
    ) -> None:
        self.plan = resolve(
            ModelConfig(model=folder, dtype=dtype, max_model_len=length),
            LoadConfig(),
            CacheConfig(num_gpu_blocks_override=blocks or 400, **cache or {}),
            SchedulerConfig(**limits),
            DeviceConfig(num_threads=1),
        )
        self.engine = Engine(EngineConfig(**self.plan.engine_options()))
        self.model: Any = build(self.plan.spec)
        load_weights(self.model, folder, self.plan.spec)
        self.runner = ModelRunner(self.plan, self.model, self.engine)
        self.tokens: dict[int, list[int]] = {}
        self.finish: dict[int, int] = {}
        self.logprobs: dict[int, list[LogprobBatch]] = {}
        self.scores: list[PromptLogprobs] = []

    def add(self, prompt: list[int], sampling: SamplingParams) -> int:
        request = self.engine.add_request(np.asarray(prompt, dtype=np.int32), sampling)
        self.tokens[request], self.logprobs[request] = [], []
        return request

    def step(self) -> StepResult:
        plan = self.engine.begin_step()
        assert plan is not None
        result = self.runner.step(plan)
        outputs = self.engine.finish_step(plan.step_id, result.tokens)
        for output in outputs:
            request = int(output["request"])
            if output["token"] >= 0:
                self.tokens[request].append(int(output["token"]))
            if result.logprobs is not None and output["sample"] >= 0:
                row = int(output["sample"])
                self.logprobs[request].append(LogprobBatch(*(column[row] for column in result.logprobs)))
            if output["finish"]:
                self.finish[request] = int(output["finish"])
        if result.prompt_logprobs is not None:
            self.scores.append(result.prompt_logprobs)
        return result

    def run(self, prompts: list[list[int]], sampling: SamplingParams) -> list[list[int]]:
        requests = [self.add(prompt, sampling) for prompt in prompts]
        while self.engine.has_unfinished():
            self.step()
        return [self.tokens[request] for request in requests]
