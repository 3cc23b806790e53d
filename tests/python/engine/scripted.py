"""An engine over the real core whose model is a script: what follows a prompt is given by its first token."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from text.tokenizer_zoo import save

from octavo import core
from octavo.engine.llm_engine import LLMEngine
from octavo.outputs import RequestOutput
from octavo.runner.batch import FinishedStep, LogprobBatch, PendingStep, PromptLogprobs, StepResult
from octavo.text.tokenizer import Tokenizer, load_tokenizer

VOCAB = 512


class ScriptedRunner:
    """Answers each row from `scripts[first prompt token]`, then repeats the last token for ever.

    `before_step` may raise or look; `bad_requests` (by first prompt token) get -1, as NaN logits would.
    """

    def __init__(self, engine: core.Engine, scripts: Mapping[int, Sequence[int]]) -> None:
        self.engine = engine
        self.scripts = dict(scripts)
        self.before_step: Callable[[], None] = lambda: None
        self.bad_requests: set[int] = set()
        self.rows_of_steps: list[int] = []
        self.tokens_computed = 0
        # The "KV cache": the token written to each slot, so that a prefix found in the cache is read from
        # there.
        size = engine.config.block_size
        self._kv = np.full((engine.config.num_blocks, size), -1, dtype=np.int64)
        self._table = engine.block_table()
        self._prompt_len: dict[int, int] = {}
        self._last = np.zeros(engine.config.max_num_seqs, dtype=np.int64)  # what each row slot sampled last

    depth = 1

    def launch(self, plan: core.StepPlan) -> PendingStep:
        self.before_step()
        return FinishedStep(self.step(plan))

    def step(self, plan: core.StepPlan) -> StepResult:
        columns = self.engine.columns(plan.slot)
        self.rows_of_steps.append(plan.num_rows)
        self.tokens_computed += plan.num_tokens
        start = columns["query_start"]
        for row in range(plan.num_rows):
            blocks = self._table[columns["row_slot"][row]]
            for i in range(start[row], start[row + 1]):
                block, offset = divmod(int(columns["position"][i]), self._kv.shape[1])
                token = int(columns["token_id"][i])
                self._kv[blocks[block], offset] = self._last[columns["row_slot"][row]] if token < 0 else token
        sample_row = columns["sample_row"][: plan.num_samples]
        lengths = columns["position"][columns["sample_token"][: plan.num_samples]] + 1
        pairs = zip(sample_row.tolist(), lengths.tolist())
        tokens = np.array([self._next(columns, row, length) for row, length in pairs], dtype=np.int32)
        self._last[columns["row_slot"][sample_row]] = tokens
        logprobs = self._logprobs(tokens, plan.max_logprobs) if plan.max_logprobs >= 0 else None
        scores = self._scores(plan, columns) if plan.num_scores else None
        return StepResult(tokens, logprobs, scores)

    def _next(self, columns: Mapping[str, Any], row: int, length: int) -> int:
        request = int(columns["request"][row])
        first = int(self._kv[self._table[columns["row_slot"][row]][0], 0])
        if first in self.bad_requests:
            return -1
        script = self.scripts.get(first, [7])
        i = length - self._prompt_len.setdefault(request, length)
        return int(script[min(i, len(script) - 1)])

    def _logprobs(self, tokens: Any, k: int) -> LogprobBatch:
        """The token has -1, the others of the likeliest k are its neighbours with -2, -3, ..."""
        rows = [[token, *((token + j) % VOCAB for j in range(k))] for token in tokens]
        values = [[-1.0, *(-1.0 - j for j in range(k))] for _ in tokens]
        ids = np.array(rows, dtype=np.int32).reshape(len(rows), k + 1)
        return LogprobBatch(ids, np.array(values, dtype=np.float32), np.ones(len(rows), dtype=np.int32))

    def _scores(self, plan: Any, columns: Mapping[str, Any]) -> PromptLogprobs:
        count = plan.num_scores
        top = columns["score_top"][:count].copy()
        return PromptLogprobs(
            request=columns["request"][columns["score_row"][:count]],
            position=columns["position"][columns["score_token"][:count]] + 1,
            top=top,
            logprobs=self._logprobs(columns["score_target"][:count], int(top.max())),
        )


class LateRunner(ScriptedRunner):
    """As a device does it: a step runs when its tokens are asked for, one step behind its launch."""

    depth = 2

    def launch(self, plan: core.StepPlan) -> PendingStep:
        self.before_step()
        return LateStep(self, plan)


class LateStep:
    def __init__(self, runner: ScriptedRunner, plan: core.StepPlan) -> None:
        self._run = functools.cache(lambda: runner.step(plan))

    def result(self) -> StepResult:
        return self._run()


class Scripted:
    """The engine, its tokenizer and its runner."""

    def __init__(self, tokenizer: Tokenizer | None, texts: Mapping[str, str], **options: Any) -> None:
        most, late = options.pop("max_logprobs", 20), options.pop("late", False)
        fields = {
            "num_blocks": 64,
            "block_size": 4,
            "max_model_len": 96,
            "max_num_batched_tokens": 256,
            **options,
        }
        plan = SimpleNamespace(
            max_model_len=fields["max_model_len"],
            spec=SimpleNamespace(vocab_size=VOCAB, eos_token_ids=(1, 4)),
            model=SimpleNamespace(seed=0, model="scripted"),
        )
        self.core = core.Engine(core.EngineConfig(vocab_size=VOCAB, **fields))
        scripts = {self.first(tokenizer, prompt): self.ids(tokenizer, text) for prompt, text in texts.items()}
        self.runner = (LateRunner if late else ScriptedRunner)(self.core, scripts)
        self.tokenizer = tokenizer
        self.engine = LLMEngine(
            plan,  # type: ignore[arg-type]
            core_engine=self.core,
            runner=self.runner,
            tokenizer=tokenizer,
            max_logprobs=most,
        )

    @staticmethod
    def ids(tokenizer: Tokenizer | None, text: str) -> list[int]:
        """Token ids of a script, one token for each byte: the finest boundaries there are."""
        assert tokenizer is not None
        pieces = [text] if "<" in text else list(text)
        return [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False)]

    @staticmethod
    def first(tokenizer: Tokenizer | None, prompt: str) -> int:
        """The token by which a prompt's script is found."""
        assert tokenizer is not None
        return tokenizer.encode(prompt, add_special_tokens=False)[0]

    def prompt(self, text: str) -> dict[str, list[int]]:
        """A prompt without BOS, so that its first token tells prompts apart."""
        assert self.tokenizer is not None
        return {"prompt_token_ids": self.tokenizer.encode(text, add_special_tokens=False)}

    def run(self) -> dict[str, RequestOutput]:
        """Steps until all is done; the last output of each request."""
        last: dict[str, RequestOutput] = {}
        while self.engine.has_unfinished_requests():
            last.update((output.request_id, output) for output in self.engine.step())
        return last

    def assert_drained(self) -> None:
        """Every block is free again and nothing is known of any request."""
        self.core.check_invariants()
        stats = self.core.stats()
        assert stats["free_blocks"] == stats["total_blocks"]
        assert (stats["running"], stats["waiting"]) == (0, 0)
        assert self.engine.get_num_unfinished_requests() == 0
        assert not self.engine.has_unfinished_requests()


def scripted_tokenizer(folder: Path) -> Tokenizer:
    """A byte-level tokenizer; id 1 is EOS, id 4 a further end token."""
    return load_tokenizer(save(folder, "byte_level"))
