"""DeviceRunner: steps on a device that works beside the host, one step behind it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch

from octavo import ops
from octavo.layers.attention import AttentionPlans
from octavo.models.registry import CausalLM
from octavo.plan.footprint import SCORE_CHUNK_BYTES
from octavo.runner.batch import LogprobBatch, PendingStep, PromptLogprobs, StepResult
from octavo.runner.graphs import StepGraphs
from octavo.runner.pool import Pool
from octavo.runner.runner import join, logprob_tensors
from octavo.runner.shapes import ShapeTable, StepShape
from octavo.runner.staging import DeviceStep, Staging

if TYPE_CHECKING:
    from octavo.core import Engine, StepPlan
    from octavo.plan import Plan

_Tensors = tuple[torch.Tensor, ...]


class DeviceRunner:
    """Owns the KV pool on the device and runs steps on it, in the order of their launches.

    A launch packs and uploads the step's columns, runs the step and asks for its tokens, all of it enqueued:
    the host goes on at once. Token ids that only the device knows are filled in there, and every step fetches
    the lines of the block tables that it reads, from the core's own memory. One thread may call it.
    """

    depth = 2

    def __init__(self, plan: Plan, model: torch.nn.Module, engine: Engine) -> None:
        self.model = model
        self._logits = cast(CausalLM, model).logits
        self.block_size, tokens = plan.block_size, plan.max_num_batched_tokens
        self.score_rows = max(1, SCORE_CHUNK_BYTES // (8 * plan.spec.vocab_size))
        host_slots = engine.config.max_steps_in_flight
        self._columns = tuple(engine.columns(slot) for slot in range(host_slots))
        rows = self._columns[0]["sample_token"].size  # a row of drafts has a sample at each
        device, groups = torch.device(plan.device), plan.footprint.groups
        pool = Pool(plan, device)
        self.pool, self._copy = pool.memory, pool.copy
        self._tables = [BlockTable(engine.block_table(group), device) for group in range(len(groups))]
        self._context = pool.context([table.lines for table in self._tables])
        self._context.plans = None if device.type == "cpu" else AttentionPlans(tokens, rows + 1)
        self._cache_slots = [torch.empty(tokens, dtype=torch.int64, device=device) for _ in groups]
        self._shapes = ShapeTable(tokens, rows)
        self._staging = Staging(
            device,
            max_tokens=tokens,
            max_rows=rows,
            max_edits=self._columns[0]["bias_token"].size,
            host_slots=host_slots,
            spare_slot=plan.max_num_seqs,
            vocab_size=plan.spec.vocab_size,
        )
        self._last_token = torch.zeros(plan.max_num_seqs + 1, dtype=torch.int32, device=device)
        self._token = torch.zeros(rows, dtype=torch.int32, device=device)
        self._landings = tuple(Landing(device, rows) for _ in range(host_slots))
        self._run = self._compute
        if device.type == "cuda" and not plan.enforce_eager:
            self._run = self._with_graphs()

    def launch(self, plan: StepPlan) -> PendingStep:
        """Start the step whose columns the core has written. Tokens keep the order of the samples."""
        columns, landing = self._columns[plan.slot], self._landings[plan.slot]
        landing.wait()  # the step that had this host slot before may have failed unread
        with torch.inference_mode():
            if plan.num_copies:
                self._copy(plan.num_copies, columns)
            step = self._staging.send(self._shapes.of(plan), plan, columns)
            logprobs: _Tensors | None = None
            scores: Scores | None = None
            if plan.max_logprobs < 0 and not plan.num_scores:
                self._run(step.shape)
            else:
                logprobs, scores = self._compute_scored(step, plan, columns)
            landing.send(self._token, plan.num_samples)
        return LaunchedStep(landing, plan.num_samples, logprobs, scores)

    def _with_graphs(self) -> Any:
        """Graphs, their memory sized by a step of the largest shape that holds nothing."""
        graphs = StepGraphs(self._compute)
        largest = self._shapes.largest_graph
        with torch.inference_mode():
            self._staging.send_empty(largest)
            graphs.run(largest)
        torch.cuda.synchronize()
        return graphs.run

    def _compute(self, shape: StepShape) -> None:
        """A step, from columns to tokens: the kernels of a graph."""
        step = self._staging.step(shape)
        hidden = self._forward(step)
        logits = self._logits(hidden.index_select(0, step.columns["sample_token"]))
        self._sample(step, logits)

    def _forward(self, step: DeviceStep) -> torch.Tensor:
        columns, context = step.columns, self._context
        token_id, position = columns["token_id"], columns["position"]
        context.query_start = start = columns["query_start"]
        context.row_slot = row_slot = columns["row_slot"]
        context.seq_len = columns["seq_len"]
        if context.plans is not None:
            context.plans.begin(1 if step.shape.decode else 0)
        ops.fill_tokens(token_id, start, row_slot, self._last_token)
        context.slots = slots = [slot[: step.shape.tokens] for slot in self._cache_slots]
        for slot, table in zip(slots, self._tables):
            table.fetch(row_slot, context.seq_len, self.block_size)
            ops.slot_mapping(slot, position, start, row_slot, table.lines, self.block_size)
        hidden: torch.Tensor = self.model(token_id, position, context)
        return hidden

    def _sample(self, step: DeviceStep, logits: torch.Tensor) -> None:
        token = self._token[: step.shape.rows]
        if step.shape.greedy:
            ops.argmax(token, logits)
        else:
            staging = self._staging
            ops.sample(token, logits, *step.sampling(staging.bias_token, staging.bias_value))
        ops.keep_tokens(self._last_token, token, step.columns["sample_row"], step.columns["row_slot"])

    def _compute_scored(
        self, step: DeviceStep, plan: StepPlan, columns: Mapping[str, npt.NDArray[Any]]
    ) -> tuple[_Tensors | None, Scores | None]:
        """A step whose raw logits somebody asked for, kernel by kernel: they differ in number every time."""
        hidden, count, top = self._forward(step), plan.num_samples, plan.max_logprobs
        scores = self._score(plan, columns, hidden) if plan.num_scores else None
        logits = self._logits(hidden.index_select(0, step.columns["sample_token"]))
        raw = logits[:count].clone() if top >= 0 else None  # the sampler clobbers them
        self._sample(step, logits)
        if raw is None:
            return None, scores
        return _landed(logprob_tensors(raw, self._token[:count], top)), scores

    def _score(self, plan: StepPlan, columns: Mapping[str, npt.NDArray[Any]], hidden: torch.Tensor) -> Scores:
        """Score prompt tokens a chunk at a time: the logits of a whole prompt could be gigabytes."""
        count = plan.num_scores
        top = columns["score_top"][:count].copy()
        token = torch.from_numpy(columns["score_token"][:count]).to(hidden.device)
        target = torch.from_numpy(columns["score_target"][:count]).to(hidden.device)
        parts = []
        for first in range(0, count, self.score_rows):
            chunk = slice(first, first + self.score_rows)
            logits = self._logits(hidden.index_select(0, token[chunk]))
            parts.append(_landed(logprob_tensors(logits, target[chunk], int(top.max()))))
        request = columns["request"][columns["score_row"][:count]]
        position = columns["position"][columns["score_token"][:count]] + 1
        return Scores(request, position, top, parts)


class BlockTable:
    """A group's block table on the device, one line longer than the core's: the last is all null blocks.

    The core's memory is registered with the device, so that a step reads its own lines from there. No count
    is kept of what the device knows: what a step reads stays as it is until the step is finished.
    """

    def __init__(self, source: npt.NDArray[np.int32], device: torch.device) -> None:
        slots, entries = source.shape
        self._source = source
        self._args = (source.ctypes.data, slots, source.strides[0] // source.itemsize)
        self.lines = torch.zeros((slots + 1, self._args[2]), dtype=torch.int32, device=device)
        if device.type == "cuda":
            register(source)

    def fetch(self, row_slot: torch.Tensor, seq_len: torch.Tensor, block_size: int) -> None:
        """Bring the lines of a step's rows, as far as their tokens reach."""
        ops.fetch_blocks(self.lines, row_slot, seq_len, *self._args, block_size)


class Landing:
    """Where the tokens of a host slot's step arrive, and when."""

    def __init__(self, device: torch.device, rows: int) -> None:
        cuda = device.type == "cuda"
        self._memory = torch.zeros(rows, dtype=torch.int32, pin_memory=cuda)
        self.tokens: npt.NDArray[np.int32] = self._memory.numpy()
        runtime: Any = torch.cuda
        self._event: Event | None = runtime.Event() if cuda else None

    def send(self, token: torch.Tensor, count: int) -> None:
        """Ask for the first tokens of a step, and note its end."""
        self._memory[:count].copy_(token[:count], non_blocking=True)
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Wait for the last step that was sent here. Raises what the device reports."""
        if self._event is not None:
            self._event.synchronize()


class Event(Protocol):
    """torch.cuda.Event."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class Scores:
    """Log-probabilities of prompt tokens on their way to the host."""

    def __init__(
        self,
        request: npt.NDArray[np.uint64],
        position: npt.NDArray[np.int32],
        top: npt.NDArray[np.int32],
        parts: Sequence[_Tensors],
    ) -> None:
        self._rows, self._parts = (request, position, top), parts

    def result(self) -> PromptLogprobs:
        """What arrived. REQUIRES: the step has ended."""
        return PromptLogprobs(*self._rows, join([_batch(part) for part in self._parts]))


class LaunchedStep:
    """A step that the device runs or has run."""

    def __init__(
        self, landing: Landing, count: int, logprobs: _Tensors | None, scores: Scores | None
    ) -> None:
        self._landing, self._count, self._logprobs, self._scores = landing, count, logprobs, scores

    def result(self) -> StepResult:
        """Wait for the step. Raises RuntimeError if the device failed."""
        self._landing.wait()
        logprobs = _batch(self._logprobs) if self._logprobs is not None else None
        scores = self._scores.result() if self._scores is not None else None
        return StepResult(self._landing.tokens[: self._count], logprobs, scores)


def _landed(tensors: _Tensors) -> _Tensors:
    """Host tensors that these are copied to in the stream's order."""
    landed = []
    for tensor in tensors:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        landed.append(host.copy_(tensor, non_blocking=True))
    return tuple(landed)


def _batch(tensors: _Tensors) -> LogprobBatch:
    return LogprobBatch(*(tensor.numpy() for tensor in tensors))


def register(array: npt.NDArray[Any]) -> None:
    """Pin an array's pages and let the device read them, for as long as the array lives."""
    cuda: Any = torch.cuda
    runtime = cuda.cudart()
    error = runtime.cudaHostRegister(array.ctypes.data, array.nbytes, 0)
    if int(error) != 0:
        raise RuntimeError(f"the block table of {array.nbytes} bytes cannot be pinned: CUDA error {error}")
    weakref.finalize(array, runtime.cudaHostUnregister, array.ctypes.data)
