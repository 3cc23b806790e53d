"""Drives a model's forward pass as the runner would, but with chunks and blocks that the test chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from octavo import ops
from octavo.hf_config import load_model_spec
from octavo.layers.attention import AttentionContext
from octavo.models.registry import build
from octavo.weights.loader import load_weights

BLOCK_SIZE = 16


class Stepper:
    """A model with a pool of its own. Row i holds a sequence whose blocks are scattered over the pool."""

    def __init__(
        self, folder: Path, *, rows: int = 1, max_len: int = 256, seed: int = 0, **changes: Any
    ) -> None:
        self.spec = dataclasses.replace(load_model_spec(folder), **changes)
        self.model: Any = build(self.spec)
        load_weights(self.model, folder, self.spec)
        per_row = -(-max_len // BLOCK_SIZE)
        generator = torch.Generator().manual_seed(seed)
        blocks = torch.randperm(rows * per_row, generator=generator) + 1
        table = blocks.view(rows, per_row).int()
        count = rows * per_row + 1
        kv: tuple[int, ...] = (2, self.spec.num_kv_heads, BLOCK_SIZE, self.spec.head_dim)
        if self.spec.latent is not None:
            kv = (BLOCK_SIZE, self.spec.latent.width)
        dtype, attention = getattr(torch, self.spec.dtype), self.spec.attention_layers
        self.context = AttentionContext(
            {layer: _unwritten((count, *kv), dtype) for layer in attention},
            [table],
            [0] * self.spec.num_layers,
            self._states(count, dtype),
        )
        self.lengths = [0] * rows

    def _states(self, blocks: int, dtype: torch.dtype) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        state = self.spec.state
        if state is None:
            return {}
        conv = (blocks, state.taps - 1, state.conv_size)
        scan = (blocks, state.heads, state.size, state.head_dim)
        return {layer: (_unwritten(conv, dtype), _unwritten(scan, torch.float32)) for layer in state.layers}

    @torch.inference_mode()
    def step(self, tokens: dict[int, Sequence[int]]) -> dict[int, torch.Tensor]:
        """Append tokens to rows, in the order given; return the logits of each appended token by row."""
        sizes = [len(ids) for ids in tokens.values()]
        starts = [self.lengths[row] for row in tokens]
        for row, size in zip(tokens, sizes):
            self.lengths[row] += size
        flat = torch.tensor([token for ids in tokens.values() for token in ids], dtype=torch.int32)
        spans = [torch.arange(start, start + size) for start, size in zip(starts, sizes)]
        position = torch.cat(spans).int()
        context = self.context
        context.query_start = torch.tensor([0, *sizes]).cumsum(0).int()
        context.row_slot = torch.tensor(list(tokens), dtype=torch.int32)
        context.seq_len = torch.tensor([self.lengths[row] for row in tokens], dtype=torch.int32)
        context.slots = [torch.empty(len(flat), dtype=torch.int64)]
        ops.slot_mapping(
            context.slots[0],
            position,
            context.query_start,
            context.row_slot,
            context.block_tables[0],
            BLOCK_SIZE,
        )
        context.rows = torch.empty(2, len(sizes), dtype=torch.int32).unbind(0)
        ops.state_mapping(
            *context.rows,
            context.query_start,
            context.row_slot,
            context.seq_len,
            context.block_tables[0],
            BLOCK_SIZE,
        )
        logits = self.model.logits(self.model.forward(flat, position, context))
        return dict(zip(tokens, logits.split(sizes)))

    def feed(self, ids: Sequence[int], chunks: Sequence[int], row: int = 0) -> torch.Tensor:
        """Append ids to one row in chunks of these sizes; return the logits of all."""
        assert sum(chunks) == len(ids)
        parts, first = [], 0
        for size in chunks:
            parts.append(self.step({row: ids[first : first + size]})[row])
            first += size
        return torch.cat(parts)


def _unwritten(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory that was never written may hold anything; nothing may read it."""
    return torch.full(shape, float("nan"), dtype=dtype)
