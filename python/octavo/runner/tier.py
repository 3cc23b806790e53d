"""What moves blocks between a device's pool and the host tier: copies on streams of their own.

What leaves was written by a finished step and what comes in is read by nobody before the core is told that
it is there (docs/contracts/transfer.md). So copies need not wait for steps that run; the next step waits for
what leaves the pool before it writes there, and for nothing else.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from octavo import ops
from octavo.plan.footprint import format_bytes

logger = logging.getLogger("octavo")

_Runs = npt.NDArray[np.int64]


class Mark(Protocol):
    """A point in a queue: torch.cuda.Event."""

    def query(self) -> bool:
        """Whether everything before it is over."""

    def synchronize(self) -> None:
        """Wait until it is."""


class CopyQueue(Protocol):
    """Copies in the order in which they are asked for, beside all other work."""

    def copy(self, pool: torch.Tensor, memory: torch.Tensor, runs: torch.Tensor, *, to_pool: bool) -> None:
        """ops.copy_runs, in the queue's order."""

    def wait_for(self, mark: Mark) -> None:
        """Let what is asked for from now on begin when another queue has passed a mark."""

    def mark(self) -> Mark:
        """The end of what was asked for so far."""


class Queues(Protocol):
    """A device's."""

    def make(self) -> CopyQueue:
        """A queue of its own."""

    def hold_steps(self, mark: Mark) -> None:
        """Let steps that are launched from now on run when a queue has passed a mark."""


class TierCopier:
    """The copier of a host tier: what octavo.core.Engine.add_device_tier calls, once a batch of blocks.

    pool: [bytes] uint8 on the device; memory: [bytes] uint8, which the device can reach.
    """

    def __init__(self, pool: torch.Tensor, memory: npt.NDArray[np.uint8], queues: Queues) -> None:
        self._pool, self._memory = pool, torch.from_numpy(memory)
        self._queues = queues
        self._out, self._into = queues.make(), queues.make()
        self._asked: list[CopyQueue] = []  # by this batch
        self._batches: deque[tuple[int, list[Mark]]] = deque()  # under way
        self._ended = 0

    def out(self, runs: _Runs) -> None:
        """Ask for copies out of the pool. runs: [n, 3], see ops.copy_runs."""
        self._copy(self._out, runs, to_pool=False)

    def into(self, runs: _Runs) -> None:
        """Ask for copies into the pool, after all that leaves it: block and host memory may be the same."""
        self._into.wait_for(self._out.mark())
        self._copy(self._into, runs, to_pool=True)

    def begin(self, batch: int) -> None:
        """Number what was asked for, and hold the next step until what leaves is gone."""
        marks = [queue.mark() for queue in self._asked]
        self._batches.append((batch, marks))
        if self._out in self._asked:
            self._queues.hold_steps(marks[self._asked.index(self._out)])
        self._asked = []

    def ended(self) -> int:
        """The last batch of which, and before which, everything is over."""
        while self._batches and all(mark.query() for mark in self._batches[0][1]):
            self._ended = self._batches.popleft()[0]
        return self._ended

    def drain(self) -> None:
        """Wait for all that was asked for."""
        self._out.mark().synchronize()
        self._into.mark().synchronize()
        if self._batches:
            self._ended = self._batches[-1][0]
            self._batches.clear()

    def _copy(self, queue: CopyQueue, runs: _Runs, *, to_pool: bool) -> None:
        if queue not in self._asked:
            self._asked.append(queue)
        try:
            queue.copy(self._pool, self._memory, torch.from_numpy(runs), to_pool=to_pool)
        except Exception as error:
            logger.warning("the host tier failed to copy, what it held is computed again: %s", error)
            raise  # the core counts the batch as failed


class CudaQueues:
    """Streams beside the one that is current now, which steps run on."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._steps = device, torch.cuda.current_stream(device)

    def make(self) -> CopyQueue:
        return _CudaQueue(self._device)

    def hold_steps(self, mark: Any) -> None:
        self._steps.wait_event(mark)


class _CudaQueue:
    def __init__(self, device: torch.device) -> None:
        cuda: Any = torch.cuda
        self._stream = cuda.Stream(device)

    def copy(self, pool: torch.Tensor, memory: torch.Tensor, runs: torch.Tensor, *, to_pool: bool) -> None:
        with torch.cuda.stream(self._stream):
            ops.copy_runs(pool, memory, runs, to_pool=to_pool)

    def wait_for(self, mark: Any) -> None:
        self._stream.wait_event(mark)

    def mark(self) -> Mark:
        mark: Mark = self._stream.record_event()
        return mark


def host_memory(size: int, device: torch.device) -> npt.NDArray[np.uint8]:
    """Memory for a tier, pinned where the device needs it. Raises MemoryError if there is not so much."""
    memory = np.empty(size, dtype=np.uint8)
    if device.type == "cuda" and size:
        try:
            register(memory)
        except RuntimeError as error:
            remedy = "give it less, or let this process lock more memory (ulimit -l)"
            raise MemoryError(f"{format_bytes(size)} of host memory: {error}; {remedy}") from error
    return memory


def register(array: npt.NDArray[Any]) -> None:
    """Pin an array's pages and let the device reach them, for as long as the array lives."""
    cuda: Any = torch.cuda
    runtime = cuda.cudart()
    error = runtime.cudaHostRegister(array.ctypes.data, array.nbytes, 0)
    if int(error) != 0:
        raise RuntimeError(f"{array.nbytes} bytes cannot be pinned: CUDA error {int(error)}")
    weakref.finalize(array, runtime.cudaHostUnregister, array.ctypes.data)
