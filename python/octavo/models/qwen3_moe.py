"""Qwen3's mixture of experts (Yang et al., 2025): Qwen3's decoder with many small experts in place of the
feed-forward block of all or some layers.
"""

from __future__ import annotations

import torch

from octavo.hf_config import ModelSpec
from octavo.layers.mlp import FeedForward, GatedMLP
from octavo.layers.moe import Experts, Router
from octavo.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel


class Qwen3MoE(FeedForward):
    """x [N, H] -> [N, H]: weights are a softmax over all experts, of the chosen ones if the spec says so."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate = Router(spec)
        self.experts = Experts(spec)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.experts(x, self.gate(x))
        return out


class Qwen3MoeDecoderLayer(LlamaDecoderLayer):
    @staticmethod
    def feed_forward(spec: ModelSpec, layer: int) -> FeedForward:
        assert spec.experts is not None
        return Qwen3MoE(spec) if spec.experts.layers[layer] else GatedMLP(spec)


class Qwen3MoeModel(LlamaModel):
    layer_class = Qwen3MoeDecoderLayer


class Qwen3MoeForCausalLM(LlamaForCausalLM):
    """The norms of query and key heads are spec.qk_norm, as in Qwen3."""

    model_class = Qwen3MoeModel
