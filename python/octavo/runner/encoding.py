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
    """Fills the blocks of the cross group. `items`: what requests brought, by the core's id."""

    def __init__(
        self,
        plan: Plan,
        model: torch.nn.Module,
        context: AttentionContext,
        items: Mapping[int, Sequence[MediaItem]],
    ) -> None:
        self._model = cast(EncoderDecoder, model)
        self._context = context
        self._items = items
        self._group = next(i for i, group in enumerate(plan.footprint.groups) if group.encoder_len)
        self._block_size = plan.block_size
        self._position = torch.arange(plan.encoder_len, dtype=torch.int32)
        self._slots = torch.empty(plan.encoder_len, dtype=torch.int64)
        self._starts = torch.arange(plan.max_num_batched_tokens + 1, dtype=torch.int32)

    def run(self, plan: StepPlan, columns: HostSlot) -> None:
        """Encode the items of this step, one at a time: each fills the machine alone."""
        for (request, index, _), row in zip(plan.encoder_inputs, plan.encoder_rows):
            item = self._items[request][index]
            encoded = self._model.encode(torch.from_numpy(item.data))
            count = len(encoded)
            position, slots = self._position[:count], self._slots[:count]
            start = torch.tensor([0, count], dtype=torch.int32)
            row_slot = columns.row_slot[row : row + 1]
            table = self._context.block_tables[self._group]
            ops.slot_mapping(slots, position, start, row_slot, table, self._block_size)
            self._model.store(encoded, slots, self._context)
        self._context.encoded = self._rows(plan, columns)

    def _rows(self, plan: StepPlan, columns: HostSlot) -> EncodedRows:
        """A row of several tokens becomes as many rows of one, which see all of the encoder."""
        tokens, rows = plan.num_tokens, plan.num_rows
        row_slot, length = columns.row_slot[:rows], columns.cross_len[:rows]
        if tokens > rows:
            counts = columns.query_start[: rows + 1].diff()
            row_slot, length = row_slot.repeat_interleave(counts), length.repeat_interleave(counts)
        return EncodedRows(row_slot, self._starts[: tokens + 1], length)
