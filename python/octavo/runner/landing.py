"""How what a device computed comes back: to pinned memory, in the stream's order, waited for by an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from octavo.runner.batch import LogprobBatch, PromptLogprobs, StepResult
from octavo.runner.runner import join

Tensors = tuple[torch.Tensor, ...]


class Landing:
    """Where the tokens of a host slot's step arrive, and when. The step itself writes them to `address`."""

    def __init__(self, device: torch.device, rows: int) -> None:
        cuda = device.type == "cuda"
        self._memory = torch.zeros(rows, dtype=torch.int32, pin_memory=cuda)
        self.address: int = self._memory.data_ptr()
        self.tokens: npt.NDArray[np.int32] = self._memory.numpy()
        runtime: Any = torch.cuda
        self._event: Event | None = runtime.Event() if cuda else None

    def note_end(self) -> None:
        """What was launched last is the step that lands here."""
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
        parts: Sequence[Tensors],
    ) -> None:
        self._rows, self._parts = (request, position, top), parts

    def result(self) -> PromptLogprobs:
        """What arrived. REQUIRES: the step has ended."""
        return PromptLogprobs(*self._rows, join([_batch(part) for part in self._parts]))


class LaunchedStep:
    """A step that the device runs or has run."""

    def __init__(self, landing: Landing, count: int, logprobs: Tensors | None, scores: Scores | None) -> None:
        self._landing, self._count, self._logprobs, self._scores = landing, count, logprobs, scores

    def result(self) -> StepResult:
        """Wait for the step. Raises RuntimeError if the device failed."""
        self._landing.wait()
        logprobs = _batch(self._logprobs) if self._logprobs is not None else None
        scores = self._scores.result() if self._scores is not None else None
        return StepResult(self._landing.tokens[: self._count], logprobs, scores)


def landed(tensors: Tensors) -> Tensors:
    """Host tensors that these are copied to in the stream's order."""
    landed = []
    for tensor in tensors:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        landed.append(host.copy_(tensor, non_blocking=True))
    return tuple(landed)


def _batch(tensors: Tensors) -> LogprobBatch:
    return LogprobBatch(*(tensor.numpy() for tensor in tensors))
