"""The columns of a device step: packed on the host, sent in one copy, read at fixed addresses.

The core writes a step's columns at full capacity; a device wants few bytes and places that never move. So the
used part of each column is packed for the step's shape into pinned memory, padded (cpp/batch/packing.h), and
copied as one piece. Every shape has its own layout of the same device memory, which is what its graph reads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from octavo.core import GraphSteps, PackedLayout, StepSizes, pack_step
from octavo.runner.shapes import StepShape

if TYPE_CHECKING:
    from octavo.core import Engine, StepPlan

_ALIGN = 16  # bytes
_Array = npt.NDArray[Any]
_Spec = tuple[str, type[np.generic], int]
_Place = tuple[str, type[np.generic], int, int]  # where a column begins and ends, in bytes

_SAMPLING: tuple[tuple[str, type[np.generic]], ...] = (
    ("temperature", np.float32),
    ("top_k", np.int32),
    ("top_p", np.float32),
    ("min_p", np.float32),
    ("presence", np.float32),
    ("frequency", np.float32),
    ("repetition", np.float32),
    ("seed", np.uint64),
    ("sample_index", np.int64),
    ("history", np.uint64),
    ("history_len", np.int32),
    ("prompt_len", np.int32),
    ("mask", np.uint64),
)
_BEFORE_BIAS = tuple(name for name, _ in _SAMPLING[:9])
_AFTER_BIAS = tuple(name for name, _ in _SAMPLING[9:])
_BY_ADDRESS = frozenset(("history", "mask"))  # the host's addresses mean nothing to the device


def columns_of(shape: StepShape, *, encoded: bool = False) -> list[_Spec]:
    """Name, dtype and entries of every column of a shape. `encoded`: tokens see an encoder's output.

    There is one row more than the shape's: it holds no tokens, and the samples that pad a step are its own.
    """
    rows, samples = shape.rows, shape.samples
    specs: list[_Spec] = [
        ("token_id", np.int32, shape.tokens),
        ("position", np.int32, shape.tokens),
        ("query_start", np.int32, rows + 2),
        ("row_slot", np.int32, rows + 1),
        ("seq_len", np.int32, rows + 1),
        ("sample_token", np.int32, samples),
        ("sample_row", np.int32, samples),
        ("landing", np.int64, 1),
    ]
    if encoded:
        specs.append(("cross_len", np.int32, rows + 1))
        # Of each token: in the attention to an encoder's output every token is a row.
        specs += [("token_slot", np.int32, shape.tokens), ("token_cross_len", np.int32, shape.tokens)]
    if not shape.greedy:
        specs += [(name, dtype, samples) for name, dtype in _SAMPLING]
        specs.append(("bias_start", np.int32, samples + 1))
    return specs


class DeviceStep(NamedTuple):
    """One shape's columns on the device."""

    shape: StepShape
    columns: Mapping[str, torch.Tensor]
    bytes: torch.Tensor

    def sampling(self, bias_token: torch.Tensor, bias_value: torch.Tensor) -> list[torch.Tensor]:
        """The columns that ops.sample takes after the logits, in its order."""
        columns = self.columns
        bias = (columns["bias_start"], bias_token, bias_value)
        return [*(columns[n] for n in _BEFORE_BIAS), *bias, *(columns[n] for n in _AFTER_BIAS)]


class _Layout(NamedTuple):
    host: tuple[Mapping[str, _Array], ...]  # one for each host slot
    host_bytes: tuple[torch.Tensor, ...]
    step: DeviceStep
    packed: PackedLayout


class Staging:
    """A pinned copy for each host slot, as steps overlap there; one on the device, as they do not."""

    def __init__(
        self,
        engine: Engine,
        device: torch.device,
        *,
        max_tokens: int,
        max_rows: int,
        max_samples: int,
        max_edits: int,
        host_slots: int,
        spare_slot: int,
        vocab_size: int,
        encoded: bool = False,
    ) -> None:
        self._engine, self._encoded = engine, encoded
        largest = StepShape(max_tokens, max_rows, max_samples, 0, False)
        size = _place(columns_of(largest, encoded=encoded))[1]
        self._pin = device.type == "cuda"
        self._host = [torch.zeros(size, dtype=torch.uint8, pin_memory=self._pin) for _ in range(host_slots)]
        self._device = torch.zeros(size, dtype=torch.uint8, device=device)
        self._spare_slot = spare_slot
        self._mask_bytes = -(-vocab_size // 32) * 4
        self._layouts: dict[StepShape, _Layout] = {}
        self._edits = [
            (
                torch.zeros(max_edits, dtype=torch.int32, pin_memory=self._pin),
                torch.zeros(max_edits, dtype=torch.float32, pin_memory=self._pin),
            )
            for _ in range(host_slots)
        ]
        self.bias_token = torch.zeros(max_edits, dtype=torch.int32, device=device)
        self.bias_value = torch.zeros(max_edits, dtype=torch.float32, device=device)

    def packed(self, shape: StepShape) -> PackedLayout:
        """Where a shape's columns lie in what is sent."""
        return self._layout(shape).packed

    def graph_steps(self, queue: int, sizes: StepSizes, landing: Sequence[int]) -> GraphSteps:
        """What sends and launches steps without Python, through the queue of this address.

        landing: the address that the tokens of each host slot's step go to. Keep this object alive meanwhile.
        """
        return GraphSteps(
            self._engine,
            queue=queue,
            sizes=sizes,
            spare_slot=self._spare_slot,
            host=[memory.data_ptr() for memory in self._host],
            host_token=[tokens.data_ptr() for tokens, _ in self._edits],
            host_value=[values.data_ptr() for _, values in self._edits],
            landing=landing,
            device=(self._device.data_ptr(), self.bias_token.data_ptr(), self.bias_value.data_ptr()),
        )

    def step(self, shape: StepShape) -> DeviceStep:
        """Where a shape's columns lie on the device."""
        return self._layout(shape).step

    def send(
        self, shape: StepShape, plan: StepPlan, columns: Mapping[str, _Array], landing: int
    ) -> DeviceStep:
        """Pack, pad and upload a step whose tokens go to the address `landing`.

        The device must have read what its host slot held before.
        """
        layout, slot = self._layout(shape), plan.slot
        spare, piece = self._spare_slot, self._host[slot].data_ptr()
        by_address = pack_step(
            self._engine, plan, layout.packed, spare_slot=spare, landing=landing, piece=piece
        )
        if self._encoded:
            _pack_encoded(layout.host[slot], plan, columns, spare)
        if not shape.greedy:
            self._send_edits(plan, columns)
        if by_address:
            self._send_histories(layout.host[slot], plan.num_samples, columns)
        layout.step.bytes.copy_(layout.host_bytes[slot], non_blocking=True)
        return layout.step

    def send_empty(self, shape: StepShape) -> None:
        """Upload a step of no rows at all, to run a shape's kernels for their own sake."""
        layout = self._layout(shape)
        host = layout.host[0]
        layout.host_bytes[0].zero_()
        host["row_slot"][:] = self._spare_slot
        host["sample_row"][:] = shape.rows
        layout.step.bytes.copy_(layout.host_bytes[0], non_blocking=True)

    def _layout(self, shape: StepShape) -> _Layout:
        layout = self._layouts.get(shape)
        if layout is None:
            layout = self._layouts[shape] = self._lay_out(shape)
        return layout

    def _lay_out(self, shape: StepShape) -> _Layout:
        places, size = _place(columns_of(shape, encoded=self._encoded))
        host = tuple(_views(places, memory.numpy()) for memory in self._host)
        device = {
            name: self._device[begin:end].view(_torch_dtype(dtype)) for name, dtype, begin, end in places
        }
        step = DeviceStep(shape, device, self._device[:size])
        offsets = {name: begin for name, _, begin, _ in places}
        packed = PackedLayout(shape=astuple(shape), offsets=offsets, bytes=size)
        return _Layout(host, tuple(memory[:size] for memory in self._host), step, packed)

    def _send_edits(self, plan: StepPlan, columns: Mapping[str, _Array]) -> None:
        edits = int(columns["bias_start"][plan.num_samples])
        if edits:
            tokens, values = self._edits[plan.slot]
            tokens.numpy()[:edits] = columns["bias_token"][:edits]
            values.numpy()[:edits] = columns["bias_value"][:edits]
            self.bias_token[:edits].copy_(tokens[:edits], non_blocking=True)
            self.bias_value[:edits].copy_(values[:edits], non_blocking=True)

    def _send_histories(self, host: Mapping[str, _Array], count: int, columns: Mapping[str, _Array]) -> None:
        """Copy what penalties and masks read, for the rows that have any: they are few and their reads rare.

        The memory is the allocator's; it is free for the steps after this one, in the stream's order.
        """
        penalised = np.flatnonzero(host["history_len"][:count])
        masked = np.flatnonzero(columns["mask"][:count])
        wanted = [("history", int(i), 4 * int(columns["history_len"][i])) for i in penalised]
        wanted += [("mask", int(i), self._mask_bytes) for i in masked]
        size = sum(_up(bytes_) for _, _, bytes_ in wanted)
        packed = torch.empty(size, dtype=torch.uint8, pin_memory=self._pin)
        target = torch.empty(size, dtype=torch.uint8, device=self._device.device)
        offset = 0
        for name, i, bytes_ in wanted:
            ctypes.memmove(packed.data_ptr() + offset, int(columns[name][i]), bytes_)
            host[name][i] = target.data_ptr() + offset
            offset += _up(bytes_)
        target.copy_(packed, non_blocking=True)
        self.held = target


def _pack_encoded(
    host: Mapping[str, _Array], plan: StepPlan, columns: Mapping[str, _Array], spare_slot: int
) -> None:
    tokens, rows = plan.num_tokens, plan.num_rows
    counts, length = np.diff(columns["query_start"][: rows + 1]), columns["cross_len"][:rows]
    host["cross_len"][:rows] = length
    host["cross_len"][rows:] = 0
    host["token_slot"][:tokens] = np.repeat(columns["row_slot"][:rows], counts)
    host["token_slot"][tokens:] = spare_slot
    host["token_cross_len"][:tokens] = np.repeat(length, counts)
    host["token_cross_len"][tokens:] = 0


def _place(specs: list[_Spec]) -> tuple[list[_Place], int]:
    """Where each column begins and ends, in bytes, and the size of all."""
    places, offset = [], 0
    for name, dtype, count in specs:
        end = offset + count * np.dtype(dtype).itemsize
        places.append((name, dtype, offset, end))
        offset = _up(end)
    return places, offset


def _views(places: list[_Place], memory: _Array) -> Mapping[str, _Array]:
    return {name: memory[begin:end].view(dtype) for name, dtype, begin, end in places}


def _up(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _torch_dtype(dtype: type[np.generic]) -> torch.dtype:
    found: torch.dtype = getattr(torch, np.dtype(dtype).name)
    return found
