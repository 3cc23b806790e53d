"""Tensors of files -> parameters on a device, at the speed of the slower of the two.

Threads read pieces of the files into pinned memory and send each on a stream of its own: while one piece is
on the bus, the next is read. A fused projection's parts are written where they belong.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from octavo.weights.safetensors_file import SafetensorsFile, TensorInfo

PIECE_BYTES = 16 << 20  # large enough for the bus, small enough that all threads share a large tensor
_MAX_THREADS = 16  # 16 GB took 0.70 s with them and 0.91 s with 8, on 16 cores beside an H200
_BUFFERS = 2  # of one thread: one is read into while the other is sent


@dataclass(frozen=True)
class FileRows:
    """Bytes of a file that are the bytes of a parameter's rows."""

    rows: torch.Tensor  # contiguous, of the file's dtype
    file: SafetensorsFile
    info: TensorInfo


@dataclass(frozen=True)
class _Piece:
    target: torch.Tensor  # uint8
    file: SafetensorsFile
    offset: int


def copy_to_device(sources: Iterable[FileRows], threads: int | None = None) -> None:
    """Fill every source's rows; returns when all are there. Raises WeightsError if a file cannot be read."""
    pieces = [piece for source in sources for piece in _pieces(source)]
    if not pieces:
        return
    workers = min(threads or os.cpu_count() or 1, _MAX_THREADS, len(pieces))
    device = pieces[0].target.device
    if device.type == "cuda":
        # The allocator gives memory away again in the order of the current stream, beside which the copies
        # run: what that stream has yet to write there must be written before.
        torch.cuda.synchronize(device)
    local = threading.local()

    def copy(piece: _Piece) -> None:
        sender = getattr(local, "sender", None)
        if sender is None:
            sender = local.sender = _Sender(device)
        sender.send(piece)

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(copy, pieces):
            pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _pieces(source: FileRows) -> Iterator[_Piece]:
    flat = source.rows.view(-1).view(torch.uint8)
    for begin in range(0, flat.numel(), PIECE_BYTES):
        yield _Piece(flat[begin : begin + PIECE_BYTES], source.file, source.info.begin + begin)


class _Sender:
    """One thread's pinned buffers and stream."""

    def __init__(self, device: torch.device) -> None:
        pin = device.type == "cuda"
        cuda: Any = torch.cuda
        self._buffers = [torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=pin) for _ in range(_BUFFERS)]
        self._stream = cuda.Stream(device) if pin else None
        self._sent = [cuda.Event() if pin else None for _ in range(_BUFFERS)]
        self._next = 0

    def send(self, piece: _Piece) -> None:
        """Read a piece, once its buffer's last one has left, and enqueue its copy."""
        at = self._next
        self._next = (at + 1) % _BUFFERS
        event, buffer = self._sent[at], self._buffers[at][: piece.target.numel()]
        if event is not None:
            event.synchronize()
        array: Any = buffer.numpy()
        piece.file.read_into(memoryview(array), piece.offset)
        if self._stream is None or event is None:
            piece.target.copy_(buffer)
            return
        with torch.cuda.stream(self._stream):
            piece.target.copy_(buffer, non_blocking=True)
            event.record()
