"""Convolution over time of a whole input, as audio encoders begin with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from octavo.hf_config import ModelSpec
from octavo.layers.layer import Layer


class Convolution(Layer):
    """Three taps over time: x [C, T] -> [H, T / stride]."""

    def __init__(self, spec: ModelSpec, channels: int, *, stride: int) -> None:
        super().__init__()
        dtype, hidden = getattr(torch, spec.dtype), spec.hidden_size
        self.weight = nn.Parameter(torch.empty(hidden, channels, 3, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(hidden, dtype=dtype), requires_grad=False)
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x, self.weight, self.bias, stride=self.stride, padding=1)
