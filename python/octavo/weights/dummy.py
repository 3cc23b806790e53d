"""Random weights for load_format="dummy": no checkpoint is read, and the same seed gives the same model."""

from __future__ import annotations

import torch
from torch import nn

FP8_MAX = 448.0
_PIECE = 1 << 20  # numbers that are drawn at a time where they are then rounded


def fill_randomly(model: nn.Module, *, seed: int = 0) -> None:
    """Set every parameter where it lies: norms to one, biases to zero, matrices to small random values.

    The variance keeps activations of order one through any number of layers, so that timing such a model
    meets no infinities or denormals, which CPUs compute more slowly.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dtype == torch.float8_e4m3fn:
                _fill_fp8(weight, generator)
            elif name.endswith("weight_scale"):
                columns = model.get_parameter(name.removesuffix("_scale")).shape[1]
                weight.fill_((3.0 / columns) ** 0.5 / FP8_MAX)
            elif name.endswith("bias"):
                weight.zero_()
            elif weight.dim() == 1:
                weight.fill_(1.0)
            else:
                bound = (3.0 / weight.shape[-1]) ** 0.5
                weight.uniform_(-bound, bound, generator=generator)


def _fill_fp8(weight: torch.Tensor, generator: torch.Generator) -> None:
    """Uniform over all that the format holds: its scale brings it to the size of other matrices."""
    for piece in torch.split(weight.view(-1), _PIECE):
        drawn = torch.empty(piece.shape, device=piece.device)
        piece.copy_(drawn.uniform_(-FP8_MAX, FP8_MAX, generator=generator))
