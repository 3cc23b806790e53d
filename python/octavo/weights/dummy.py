"""Random weights for load_format="dummy": no checkpoint is read, and the same seed gives the same model."""

from __future__ import annotations

import torch
from torch import nn


def fill_randomly(model: nn.Module, *, seed: int = 0) -> None:
    """Set every parameter where it lies: norms to one, biases to zero, matrices to small random values.

    The variance keeps activations of order one through any number of layers, so that timing such a model
    meets no infinities or denormals, which CPUs compute more slowly.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.dim() == 1:
                weight.fill_(1.0)
            else:
                bound = (3.0 / weight.shape[-1]) ** 0.5
                weight.uniform_(-bound, bound, generator=generator)
