"""DeviceRunner: steps on a device that works beside the host, one step behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch

from octavo import ops
from octavo.layers.attention import AttentionContext, AttentionPlans, EncodedRows
from octavo.media.item import MediaItem
from octavo.models.registry import CausalLM
from octavo.plan.footprint import SCORE_CHUNK_BYTES
from octavo.runner.batch import PendingStep
from octavo.runner.encoding import CrossEncoding
from octavo.runner.graphs import StepGraphs, tells_handles
from octavo.runner.landing import Landing, LaunchedStep, Scores, Tensors, landed
from octavo.runner.pool import Pool
from octavo.runner.runner import logprob_tensors, sample
from octavo.runner.shapes import ShapeTable, StepShape
from octavo.runner.staging import DeviceStep, Staging
from octavo.runner.tier import CudaQueues, Queues, TierCopier, host_memory, register
from octavo.weights.kv_scales import KvScales

if TYPE_CHECKING:
    from octavo.core import Engine, GraphSteps, StepPlan
    from octavo.plan import Plan

# Tokens of a row that is decoded. One of more drafts reads its keys once in the kernel of prompts.
_MOST_DECODE_QUERIES = 8

Run = Callable[[StepShape], None]


class Graphs(Protocol):
    """octavo.runner.graphs.StepGraphs."""

    def run(self, shape: StepShape) -> None:
        """Run a step of a shape whose columns are on the device."""


class DeviceRunner:
    """Owns the KV pool on the device and runs steps on it, in the order of their launches.

    `depth`: how many may be launched before the first is waited for.

    A launch packs and uploads the step's columns, runs the step and asks for its tokens, all of it enqueued:
    the host goes on at once. Token ids that only the device knows are filled in there, and every step fetches
    the lines of the block tables that it reads, from the core's own memory. One thread may call it.
    """

    def __init__(
        self,
        plan: Plan,
        model: torch.nn.Module,
        engine: Engine,
        items: Mapping[int, Sequence[MediaItem]] | None = None,
        scales: Mapping[int, KvScales] | None = None,
    ) -> None:
        """`items`: what requests bring for the model's encoder, by the core's id of the request; `scales`:
        of a KV cache in fp8, by layer.
        """
        drafts = engine.config.max_draft_tokens
        # Who has drafts waits for the tokens before them: with a step ahead, steps would alternate between
        # those who have drafts and those who have none.
        self.depth = 1 if drafts else 2
        self.model = model
        self._logits = cast(CausalLM, model).logits
        self.block_size, tokens = plan.block_size, plan.max_num_batched_tokens
        self.score_rows = max(1, SCORE_CHUNK_BYTES // (8 * plan.spec.vocab_size))
        host_slots = engine.config.max_steps_in_flight
        self._columns = tuple(engine.columns(slot) for slot in range(host_slots))
        rows = plan.max_num_seqs
        samples = self._columns[0]["sample_token"].size  # a row of drafts has one at each
        self._device = device = torch.device(plan.device)
        self._kinds = [group.kind for group in plan.footprint.groups]
        pool = Pool(plan, device)
        self.pool, self._copy, self._pool_bytes = pool.memory, pool.copy, pool.bytes
        tables = [engine.block_table(group) for group in range(len(self._kinds))]
        self._tables = [BlockTable(table, device) for table in tables]
        self._context = self._make_context(plan, pool, drafts, scales)
        self._encoding: CrossEncoding | None = None
        if plan.spec.encoder is not None:
            # Not `items or {}`: it is empty now and filled later.
            brought = {} if items is None else items
            table = torch.from_numpy(tables[self._kinds.index("cross")])
            self._encoding = CrossEncoding(plan, model, self._context, table, brought)
            self._starts = torch.arange(tokens + 1, dtype=torch.int32, device=device)
        self._cache_slots = [torch.empty(tokens, dtype=torch.int64, device=device) for _ in self._kinds]
        self._state_rows = torch.empty((2, rows + 1), dtype=torch.int32, device=device)
        self._shapes = ShapeTable(tokens, rows, drafts)
        self._staging = Staging(
            engine,
            device,
            max_tokens=tokens,
            max_rows=rows,
            max_samples=samples,
            max_edits=self._columns[0]["bias_token"].size,
            host_slots=host_slots,
            spare_slot=plan.max_num_seqs,
            vocab_size=plan.spec.vocab_size,
            encoded=self._encoding is not None,
        )
        self._last_token = torch.zeros(plan.max_num_seqs + 1, dtype=torch.int32, device=device)
        self._token = torch.zeros(samples, dtype=torch.int32, device=device)
        self._landings = tuple(Landing(device, samples) for _ in range(host_slots))
        # What launches captured steps without Python; None where there are no graphs, and where steps need
        # more than their columns: an encoder is run before its step.
        self.graph_steps: GraphSteps | None = None
        self._run: Run = self._compute
        self._in_stream: Callable[[], AbstractContextManager[Any]] = nullcontext
        if device.type == "cuda":
            self._use_stream(torch.cuda.current_stream(device), None if plan.enforce_eager else host_slots)

    def _make_context(
        self, plan: Plan, pool: Pool, drafts: int, scales: Mapping[int, KvScales] | None
    ) -> AttentionContext:
        context = pool.context([table.lines for table in self._tables], scales)
        context.invariant = plan.batch_invariant
        if self._device.type != "cpu":
            decode_queries = 0 if plan.batch_invariant else min(1 + drafts, _MOST_DECODE_QUERIES)
            context.plans = AttentionPlans(plan.max_num_batched_tokens, plan.max_num_seqs + 1, decode_queries)
        return context

    def _use_stream(self, stream: torch.cuda.Stream, slots: int | None) -> None:
        """Keep all steps in the order of one stream, whoever launches them and wherever.

        `slots`: how many may be marked in it by what launches graphs; None: no graphs.
        """
        self._in_stream = partial(torch.cuda.stream, stream)
        if slots is not None:
            self._queue = ops.stream_queue(stream.device_index, stream.cuda_stream, slots)
            self.use_graphs(StepGraphs, self._queue.address if tells_handles() else None)
            self.run_empty(self._shapes.usual_graphs)

    def use_graphs(
        self, make: Callable[[Run, Callable[[StepShape, int], None]], Graphs], queue: int | None
    ) -> None:
        """Capture steps from now on, and let them be launched through the queue at this address.

        Their memory is sized by a step of the largest shape that holds nothing. Without a queue it is left to
        Python to launch them.
        """
        if self._encoding is None and queue is not None:
            landing = [landing.address for landing in self._landings]
            self.graph_steps = self._staging.graph_steps(queue, self._shapes.sizes, landing)
        graphs = make(self._compute, self._captured)
        self._run = graphs.run
        self.run_empty([self._shapes.largest_graph])

    def run_empty(self, shapes: Iterable[StepShape]) -> None:
        """Run a step of each shape that holds nothing: it loads the kernels, and captures what was not."""
        for shape in shapes:
            with torch.inference_mode():
                self._staging.send_empty(shape)
                self._run(shape)
            # The columns of all of them are sent from one place.
            if self._device.type == "cuda":
                torch.cuda.synchronize()

    def _captured(self, shape: StepShape, graph: int) -> None:
        if self.graph_steps is not None:
            self.graph_steps.add(self._staging.packed(shape), graph)

    def add_host_tier(self, engine: Engine, size: int, queues: Queues | None = None) -> None:
        """Keep what the pool evicts in `size` bytes of pinned memory. MemoryError if there is not so much.

        `queues`: who copies; the device's own streams.
        """
        parent = self.pool[0].nbytes
        memory = host_memory(size // parent * parent or size, self._device)
        copier = TierCopier(self._pool_bytes, memory, queues or CudaQueues(self._device))
        engine.add_device_tier(copier, memory, parent)

    def launch(self, plan: StepPlan) -> PendingStep:
        """Start the step whose columns the core has written. Tokens keep the order of the samples."""
        columns, landing = self._columns[plan.slot], self._landings[plan.slot]
        landing.wait()  # the step that had this host slot before may have failed unread
        with self._in_stream(), torch.inference_mode():
            if plan.num_copies:
                self._copy(plan.num_copies, columns)
            if self._encoding is not None:
                self._encoding.run(plan, torch.from_numpy(columns["row_slot"]))
            step = self._staging.send(self._shapes.of(plan), plan, columns, landing.address)
            logprobs: Tensors | None = None
            scores: Scores | None = None
            if plan.max_logprobs < 0 and not plan.num_scores:
                self._run(step.shape)
            else:
                logprobs, scores = self._compute_scored(step, plan, columns)
            landing.note_end()
        return LaunchedStep(landing, plan.num_samples, logprobs, scores)

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
            context.plans.begin(step.shape.queries)
        ops.fill_tokens(token_id, start, row_slot, self._last_token)
        context.slots = slots = [slot[: step.shape.tokens] for slot in self._cache_slots]
        for slot, table, kind in zip(slots, self._tables, self._kinds):
            if kind == "cross":  # whose tokens' keys are the encoder's
                table.fetch(row_slot, columns["cross_len"], self.block_size)
                starts = self._starts[: step.shape.tokens + 1]
                context.encoded = EncodedRows(columns["token_slot"], starts, columns["token_cross_len"])
                continue
            table.fetch(row_slot, context.seq_len, self.block_size)
            if kind == "state":
                self._map_states(step, table.lines)
            else:
                ops.slot_mapping(slot, position, start, row_slot, table.lines, self.block_size)
        hidden: torch.Tensor = self.model(token_id, position, context)
        return hidden

    def _map_states(self, step: DeviceStep, table: torch.Tensor) -> None:
        """Tell recurrent layers where each row's state lies and where it goes."""
        columns, row_slot = step.columns, step.columns["row_slot"]
        count = len(row_slot)
        self._context.rows = source, target = self._state_rows[0, :count], self._state_rows[1, :count]
        rows = (columns["query_start"], row_slot, columns["seq_len"])
        ops.state_mapping(source, target, *rows, table, self.block_size)

    def _sample(self, step: DeviceStep, logits: torch.Tensor) -> None:
        token = self._token[: step.shape.samples]
        if step.shape.greedy:
            ops.argmax(token, logits)
        else:
            staging = self._staging
            sample(token, logits, step.sampling(staging.bias_token, staging.bias_value))
        rows, slots = step.columns["sample_row"], step.columns["row_slot"]
        ops.keep_tokens(self._last_token, token, rows, slots, step.columns["landing"])

    def _compute_scored(
        self, step: DeviceStep, plan: StepPlan, columns: Mapping[str, npt.NDArray[Any]]
    ) -> tuple[Tensors | None, Scores | None]:
        """A step whose raw logits somebody asked for, kernel by kernel: they differ in number every time."""
        hidden, count, top = self._forward(step), plan.num_samples, plan.max_logprobs
        scores = self._score(plan, columns, hidden) if plan.num_scores else None
        logits = self._logits(hidden.index_select(0, step.columns["sample_token"]))
        raw = logits[:count].clone() if top >= 0 else None  # the sampler clobbers them
        self._sample(step, logits)
        if raw is None:
            return None, scores
        return landed(logprob_tensors(raw, self._token[:count], top)), scores

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
            parts.append(landed(logprob_tensors(logits, target[chunk], int(top.max()))))
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
