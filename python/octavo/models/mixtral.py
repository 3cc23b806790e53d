"""Mixtral (Jiang et al., 2024): Mistral's decoder whose feed-forward blocks are mixtures of experts."""

from __future__ import annotations

import torch

from octavo.hf_config import ModelSpec
from octavo.layers.mlp import FeedForward
from octavo.layers.moe import Experts, Router
from octavo.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel


class MixtralMoE(FeedForward):
    """x [N, H] -> [N, H]: the softmax of the router's largest logits weighs their experts."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate = Router(spec)
        self.experts = Experts(spec, parts=("w1", "w3", "w2"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.experts(x, self.gate(x))
        return out


class MixtralDecoderLayer(LlamaDecoderLayer):
    @staticmethod
    def feed_forward(spec: ModelSpec, layer: int) -> FeedForward:
        return MixtralMoE(spec)


class MixtralModel(LlamaModel):
    layer_class = MixtralDecoderLayer


class MixtralForCausalLM(LlamaForCausalLM):
    """Checkpoints call the block block_sparse_moe, transformers 5 in memory mlp; either is read."""

    model_class = MixtralModel
