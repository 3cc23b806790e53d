"""ModelRunner: one step of the batch through the model, the sampler and the log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from octavo import ops
from octavo.media.item import MediaItem
from octavo.models.registry import CausalLM
from octavo.plan.footprint import SCORE_CHUNK_BYTES
from octavo.runner.batch import (
    FinishedStep,
    HostSlot,
    LogprobBatch,
    PendingStep,
    PromptLogprobs,
    StepResult,
)
from octavo.runner.encoding import CrossEncoding
from octavo.runner.pool import Pool
from octavo.weights.kv_scales import KvScales

if TYPE_CHECKING:
    from octavo.core import Engine, StepPlan
    from octavo.plan import Plan


class ModelRunner:
    """Owns the KV pool and runs steps on it. One thread at a time may call it."""

    def __init__(
        self,
        plan: Plan,
        model: torch.nn.Module,
        engine: Engine,
        items: Mapping[int, Sequence[MediaItem]] | None = None,
        scales: Mapping[int, KvScales] | None = None,
    ) -> None:
        """`items`: what requests bring for the model's encoder, by the core's id of the request; `scales`: of
        a KV cache in fp8, by layer."""
        spec = plan.spec
        self.model = model
        self._logits = cast(CausalLM, model).logits
        self.block_size = plan.block_size
        self.score_rows = max(1, SCORE_CHUNK_BYTES // (8 * spec.vocab_size))
        groups = plan.footprint.groups
        pool = Pool(plan)
        self.pool = pool.memory
        self.block_tables = [torch.from_numpy(engine.block_table(group)) for group in range(len(groups))]
        slots = range(engine.config.max_steps_in_flight)
        self._slots = tuple(HostSlot(engine.columns(slot)) for slot in slots)
        self._context = pool.context(self.block_tables, scales)
        self._context.invariant = plan.batch_invariant
        self._copy = pool.copy
        self._kinds = [group.kind for group in groups]
        self._encoding: CrossEncoding | None = None
        if spec.encoder is not None:
            # Not `items or {}`: it is empty now and filled later.
            brought = {} if items is None else items
            table = self.block_tables[self._kinds.index("cross")]
            self._encoding = CrossEncoding(plan, model, self._context, table, brought)
        self._state_rows = torch.empty((2, plan.max_num_seqs), dtype=torch.int32)
        self._cache_slots = [torch.empty(plan.max_num_batched_tokens, dtype=torch.int64) for _ in groups]
        self._token = torch.empty(len(self._slots[0].sample_token), dtype=torch.int32)
        self._token_array = self._token.numpy()
        torch.set_num_threads(plan.num_threads)

    depth = 1

    def add_host_tier(self, engine: Engine, size: int) -> None:
        """Keep what the pool evicts in `size` more bytes. MemoryError if there is not so much."""
        engine.add_host_tier(self.pool.data_ptr(), self.pool[0].nbytes, size)

    def launch(self, plan: StepPlan) -> PendingStep:
        """Run the step at once: there is nobody else to run it."""
        return FinishedStep(self.step(plan))

    def step(self, plan: StepPlan) -> StepResult:
        """Run the step whose columns the core has written. Tokens keep the order of the samples."""
        with torch.inference_mode():
            columns = self._slots[plan.slot]
            if plan.num_copies:
                self._copy(plan.num_copies, columns.arrays)
            if self._encoding is not None:
                self._encoding.run(plan, columns.row_slot)
                self._context.encoded = self._encoding.rows(plan, columns)
            hidden = self._forward(plan, columns)
            scores = self._score(plan, columns, hidden) if plan.num_scores else None
            logprobs = self._sample(plan, columns, hidden) if plan.num_samples else None
            return StepResult(self._token_array[: plan.num_samples], logprobs, scores)

    def _forward(self, plan: StepPlan, columns: HostSlot) -> torch.Tensor:
        tokens, rows = plan.num_tokens, plan.num_rows
        context, position = self._context, columns.position[:tokens]
        context.query_start = columns.query_start[: rows + 1]
        context.row_slot = columns.row_slot[:rows]
        context.seq_len = columns.seq_len[:rows]
        context.slots = slots = [slot[:tokens] for slot in self._cache_slots]
        context.rows = source, target = self._state_rows[0, :rows], self._state_rows[1, :rows]
        start, row_slot, size = context.query_start, context.row_slot, self.block_size
        for slot, table, kind in zip(slots, self.block_tables, self._kinds):
            if kind == "state":
                ops.state_mapping(source, target, start, row_slot, context.seq_len, table, size)
            elif kind != "cross":  # whose tokens' keys are the encoder's
                ops.slot_mapping(slot, position, start, row_slot, table, size)
        hidden: torch.Tensor = self.model(columns.token_id[:tokens], position, context)
        return hidden

    def _sample(self, plan: StepPlan, columns: HostSlot, hidden: torch.Tensor) -> LogprobBatch | None:
        """Fill the first tokens of self._token. The sampler clobbers the logits, so log-probabilities of the
        raw ones are taken from a copy."""
        count, top = plan.num_samples, plan.max_logprobs
        logits = self._logits(hidden.index_select(0, columns.sample_token[:count]))
        token = self._token[:count]
        if plan.all_greedy:
            ops.argmax(token, logits)
            return _logprobs(logits, token, top) if top >= 0 else None
        raw = logits.clone() if top >= 0 else None
        sample(token, logits, columns.sampling(count))
        return None if raw is None else _logprobs(raw, token, top)

    def _score(self, plan: StepPlan, columns: HostSlot, hidden: torch.Tensor) -> PromptLogprobs:
        """Score prompt tokens a chunk at a time: the logits of a whole prompt could be gigabytes."""
        count, arrays = plan.num_scores, columns.arrays
        top = arrays["score_top"][:count].copy()
        most = int(top.max())
        parts = []
        for first in range(0, count, self.score_rows):
            last = min(first + self.score_rows, count)
            logits = self._logits(hidden.index_select(0, columns.score_token[first:last]))
            parts.append(_logprobs(logits, columns.score_target[first:last], most))
        return PromptLogprobs(
            request=arrays["request"][arrays["score_row"][:count]],
            position=arrays["position"][arrays["score_token"][:count]] + 1,
            top=top,
            logprobs=join(parts),
        )


def sample(token: torch.Tensor, logits: torch.Tensor, columns: Sequence[torch.Tensor]) -> None:
    """Draw a token for each row of logits [M, V], with the columns that ops.sample takes after them."""
    scratch: Sequence[torch.Tensor] = ()  # where rows in 16 bits are edited
    if logits.dtype != torch.float32:
        scratch = (torch.empty(logits.shape, dtype=torch.float32, device=logits.device),)
    ops.sample(token, logits, *columns, *scratch)


def logprob_tensors(
    logits: torch.Tensor, token: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids [M, top + 1], values [M, top + 1] and ranks [M]: LogprobBatch where the logits lie."""
    count, device = logits.shape[0], logits.device
    ids = torch.empty((count, top + 1), dtype=torch.int32, device=device)
    values = torch.empty((count, top + 1), dtype=torch.float32, device=device)
    ranks = torch.empty(count, dtype=torch.int32, device=device)
    ops.logprobs(ids, values, ranks, logits.float(), token, top)
    return ids, values, ranks


def _logprobs(logits: torch.Tensor, token: torch.Tensor, top: int) -> LogprobBatch:
    return LogprobBatch(*(tensor.numpy() for tensor in logprob_tensors(logits, token, top)))


def join(parts: list[LogprobBatch]) -> LogprobBatch:
    if len(parts) == 1:
        return parts[0]
    import numpy as np

    columns: Any = zip(*parts)
    return LogprobBatch(*(np.concatenate(column) for column in columns))
