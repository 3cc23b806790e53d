"""Ways to run a real model through the core: steps behind their plans, and tokens guessed beforehand."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from octavo import LLM, SamplingParams
from octavo.outputs import RequestOutput
from octavo.runner.batch import PendingStep, StepResult
from octavo.runner.runner import ModelRunner


class LateStep:
    """A step that runs when its tokens are asked for."""

    def __init__(self, runner: LateRunner, plan: Any) -> None:
        self._run = functools.cache(lambda: runner.run(plan))

    def result(self) -> StepResult:
        return self._run()


class LateRunner:
    """Runs steps of a model in order, each while later ones are planned already, as a device does.

    Tokens not known when a step is planned are -1; here they become what their row slot sampled last.
    """

    def __init__(self, inner: ModelRunner, engine: Any, depth: int) -> None:
        self.depth = depth
        self.unknown = 0
        self._inner = inner
        self._engine = engine
        self._last = np.zeros(engine.config.max_num_seqs, dtype=np.int32)

    def launch(self, plan: Any) -> PendingStep:
        return LateStep(self, plan)

    def run(self, plan: Any) -> StepResult:
        columns = self._engine.columns(plan.slot)
        token_id = columns["token_id"][: plan.num_tokens]
        counts = np.diff(columns["query_start"][: plan.num_rows + 1])
        slots = columns["row_slot"][: plan.num_rows]
        unknown = token_id < 0
        token_id[unknown] = self._last[np.repeat(slots, counts)][unknown]
        self.unknown += int(unknown.sum())
        result = self._inner.step(plan)
        self._last[slots[columns["sample_row"][: plan.num_samples]]] = result.tokens
        return result._replace(tokens=result.tokens.copy())


def run_ahead(llm: LLM, depth: int) -> LateRunner:
    """Makes an LLM keep `depth` steps open."""
    engine = llm.llm_engine
    runner = LateRunner(engine.runner, engine.core, depth)
    engine.runner = engine._steps._runner = runner
    return runner


def generate_with_guesses(
    llm: LLM, prompts: Sequence[list[int]], params: Sequence[SamplingParams], right: Sequence[list[int]]
) -> list[RequestOutput]:
    """As LLM.generate, with guesses for most requests after each step: what is right, spoilt at random.

    REQUIRES: the LLM takes drafts.
    """
    draw = random.Random(11)
    engine, most = llm.llm_engine, llm.llm_engine.core.config.max_draft_tokens
    for i, (prompt, own) in enumerate(zip(prompts, params)):
        engine.add_request(str(i), prompt, own)
    finished: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        finished.update((output.request_id, output) for output in engine.step() if output.finished)
        for sample in list(engine._samples.values()):
            if draw.random() < 0.3:
                continue
            known = right[int(sample.request.request_id)][len(sample.token_ids) :]
            guess = [token if draw.random() < 0.8 else draw.randrange(64) for token in known[:most]]
            if guess and sample.token_ids:
                try:
                    engine.core.set_drafts(sample.core_id, np.array(guess, np.int32))
                except RuntimeError as error:  # its guesses are in an open step
                    assert "open step" in str(error)
    return [finished[str(i)] for i in range(len(prompts))]
