"""Token ids to vectors, and vectors to logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from octavo import ops
from octavo.hf_config import ModelSpec
from octavo.layers.layer import Layer
from octavo.layers.linear import chosen_product


class Embedding(Layer):
    """token_id [N] int32 -> [N, H]. Ids must lie in the vocabulary; the core checked them.

    Gemma multiplies by a scale, rounded to the model's dtype as in its training.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.weight = _weight(spec)
        self.scale = float(torch.tensor(spec.embedding_scale, dtype=self.weight.dtype))

    def forward(self, token_id: torch.Tensor) -> torch.Tensor:
        out = F.embedding(token_id, self.weight)
        return out if self.scale == 1.0 else out.mul_(self.scale)


class PositionTable(Layer):
    """position [N] int32 -> [N, H]: learned, or computed before training and stored all the same."""

    def __init__(self, length: int, spec: ModelSpec) -> None:
        super().__init__()
        weight = torch.empty(length, spec.hidden_size, dtype=getattr(torch, spec.dtype))
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, position: torch.Tensor) -> torch.Tensor:
        return F.embedding(position, self.weight)


class Head(Layer):
    """hidden [M, H] -> logits [M, V] as the product has them, or in float32 within the spec's soft cap.
    A tied head is the embedding's own weight.
    """

    def __init__(self, spec: ModelSpec, tied_to: Embedding | None) -> None:
        super().__init__()
        self.weight = tied_to.weight if tied_to is not None else _weight(spec)
        self.soft_cap = spec.final_soft_cap
        self.product = chosen_product()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.product(hidden, self.weight)
        if not self.soft_cap:
            return logits
        logits = logits.float()
        if logits.is_cpu:  # where torch's tanh of an element depends on its place in the tensor
            ops.soft_cap(logits, self.soft_cap)
            return logits
        return logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)


def _weight(spec: ModelSpec) -> nn.Parameter:
    weight = torch.empty(spec.vocab_size, spec.hidden_size, dtype=getattr(torch, spec.dtype))
    return nn.Parameter(weight, requires_grad=False)
