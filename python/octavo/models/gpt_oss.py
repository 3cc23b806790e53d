"""GPT-OSS (OpenAI, 2025): attention with a sink for each head, every other layer slides, and in each layer a
mixture of experts with biases and a clamped gate.
"""

from __future__ import annotations

import functools

import torch

from octavo import ops
from octavo.hf_config import ModelSpec
from octavo.layers.mlp import FeedForward
from octavo.layers.moe import Experts, Router
from octavo.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel


class GptOssMoE(FeedForward):
    """x [N, H] -> [N, H]. In a checkpoint gate and up take turns, and weights are transposed."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        assert spec.experts is not None
        assert spec.experts.gate is not None
        alpha, limit = spec.experts.gate
        self.router = Router(spec)
        gate = functools.partial(ops.clamped_swiglu, alpha=alpha, limit=limit)
        self.experts = Experts(spec, gate, parts=None, columns=True, interleaved=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.experts(x, self.router(x))
        return out


class GptOssDecoderLayer(LlamaDecoderLayer):
    @staticmethod
    def feed_forward(spec: ModelSpec, layer: int) -> FeedForward:
        return GptOssMoE(spec)


class GptOssModel(LlamaModel):
    layer_class = GptOssDecoderLayer


class GptOssForCausalLM(LlamaForCausalLM):
    """Sinks and biases of attention are the spec's."""

    model_class = GptOssModel
