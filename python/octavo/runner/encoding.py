"""Encoders in a step: what a plan names is encoded before the forward pass; rows are told what they see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch

from octavo import ops
from octavo.layers.attention import AttentionContext, EncodedRows
from octavo.media.item import MediaItem
from octavo.models.registry import EncoderDecoder
from octavo.runner.batch import HostSlot

if TYPE_CHECKING:
    from octavo.core import StepPlan
    from octavo.plan import Plan


class CrossEncoding:
    """Fills the blocks of the cross group. `items`: what requests brought, by the core's id.

    `table`: [slots, max_blocks] int32, the cross group's in host memory. Items are encoded where the model
    lies, kernel by kernel, before the step that was planned with them.
    """

    def __init__(
        self,
        plan: Plan,
        model: torch.nn.Module,
        context: AttentionContext,
        table: torch.Tensor,
        items: Mapping[int, Sequence[MediaItem]],
    ) -> None:
        self._model = cast(EncoderDecoder, model)
        self._context = context
        self._items = items
        self._table = table
        self._device = torch.device(plan.device)
        self._block_size = plan.block_size
        self._position = torch.arange(plan.encoder_len, dtype=torch.int32)
        self._slots = torch.empty(plan.encoder_len, dtype=torch.int64)
        self._starts = torch.arange(plan.max_num_batched_tokens + 1, dtype=torch.int32)

    def run(self, plan: StepPlan, row_slots: torch.Tensor) -> None:
        """Encode the items of this step, one at a time: each fills the machine alone. row_slots: [R]."""
        for (request, index, _), row in zip(plan.encoder_inputs, plan.encoder_rows):
            item = self._items[request][index]
            encoded = self._model.encode(self._uploaded(torch.from_numpy(item.data)))
            count = len(encoded)
            position, slots = self._position[:count], self._slots[:count]
            start = torch.tensor([0, count], dtype=torch.int32)
            ops.slot_mapping(slots, position, start, row_slots[row : row + 1], self._table, self._block_size)
            self._model.store(encoded, self._uploaded(slots), self._context)

    def rows(self, plan: StepPlan, columns: HostSlot) -> EncodedRows:
        """A row of several tokens becomes as many rows of one, which see all of the encoder."""
        tokens, rows = plan.num_tokens, plan.num_rows
        row_slot, length = columns.row_slot[:rows], columns.cross_len[:rows]
        if tokens > rows:
            counts = columns.query_start[: rows + 1].diff()
            row_slot, length = row_slot.repeat_interleave(counts), length.repeat_interleave(counts)
        return EncodedRows(row_slot, self._starts[: tokens + 1], length)

    def _uploaded(self, tensor: torch.Tensor) -> torch.Tensor:
        """A host tensor where the model lies, through pinned memory of its own: the host goes on at once."""
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)
