"""The columns of a step as tensors, and what a step returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch


class HostSlot:
    """Every column of one host slot of the core's batch, wrapped once over the core's own memory.

    Tensors span the whole capacity; a step uses their first elements. Shapes and meaning: octavo/step.h.
    """

    token_id: torch.Tensor
    position: torch.Tensor
    query_start: torch.Tensor
    row_slot: torch.Tensor
    seq_len: torch.Tensor
    cross_len: torch.Tensor
    sample_token: torch.Tensor
    bias_start: torch.Tensor
    bias_token: torch.Tensor
    bias_value: torch.Tensor
    score_token: torch.Tensor
    score_target: torch.Tensor

    def __init__(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        self.arrays = dict(columns)
        for name, array in columns.items():
            setattr(self, name, torch.from_numpy(array))
        before = ("temperature", "top_k", "top_p", "min_p", "presence", "frequency", "repetition")
        self._before_bias = [getattr(self, name) for name in (*before, "seed", "sample_index")]
        after = ("history", "history_len", "prompt_len", "mask")
        self._after_bias = [getattr(self, name) for name in after]

    def sampling(self, count: int) -> list[torch.Tensor]:
        """Return the columns that ops.sample takes after the logits, in its order, for `count` samples."""
        bias = (self.bias_start[: count + 1], self.bias_token, self.bias_value)
        first = [column[:count] for column in self._before_bias]
        return [*first, *bias, *(column[:count] for column in self._after_bias)]


class LogprobBatch(NamedTuple):
    """Log-probabilities of M tokens, from raw logits. Arrays of their own, valid as long as they are held."""

    token_ids: npt.NDArray[np.int32]  # [M, K + 1]: the token itself, then the K likeliest, falling
    values: npt.NDArray[np.float32]  # [M, K + 1]
    ranks: npt.NDArray[np.int32]  # [M]: of the token itself, 1 = likeliest


class PromptLogprobs(NamedTuple):
    """Log-probabilities of prompt tokens that this step computed, P in all."""

    request: npt.NDArray[np.uint64]  # [P]
    position: npt.NDArray[np.int32]  # [P]: where the scored token stands in its prompt
    top: npt.NDArray[np.int32]  # [P]: how many of the likeliest this request asked for
    logprobs: LogprobBatch


class StepResult(NamedTuple):
    """What one step computed. `tokens` is the runner's own memory, overwritten by the next step."""

    tokens: npt.NDArray[np.int32]  # [S]; -1: the row's logits were not finite, or nothing was allowed
    logprobs: LogprobBatch | None  # of the S samples; None when no row asked
    prompt_logprobs: PromptLogprobs | None


class PendingStep(Protocol):
    """A step that was launched."""

    def result(self) -> StepResult:
        """Wait for the step and return what it computed. Raises what the step raised."""


class FinishedStep:
    """A step that ran while it was launched."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def result(self) -> StepResult:
        return self._result
