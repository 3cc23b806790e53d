"""DeepSeek-V2 (DeepSeek-AI, 2024): latent attention, and in all but the first layers many small experts
beside shared ones.
"""

from __future__ import annotations

import torch
from torch import nn

from octavo import ops
from octavo.hf_config import ModelSpec
from octavo.layers.latent import LatentAttention
from octavo.layers.linear import Linear, product
from octavo.layers.mlp import FeedForward, GatedMLP
from octavo.layers.moe import Experts, Routes
from octavo.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel


class DeepseekRouter(Linear):
    """x [N, H] -> the experts of each token and their weights, in float32 whatever the model's dtype."""

    e_score_correction_bias: nn.Parameter | None

    def __init__(self, spec: ModelSpec) -> None:
        experts = spec.experts
        assert experts is not None
        super().__init__(spec.hidden_size, experts.count, dtype=torch.float32)
        self.e_score_correction_bias = None
        if experts.corrected:
            correction = torch.empty(experts.count, dtype=torch.float32)
            self.e_score_correction_bias = nn.Parameter(correction, requires_grad=False)
        self.experts = experts

    def forward(self, x: torch.Tensor) -> Routes:  # type: ignore[override]
        experts = self.experts
        logits = product(x.float(), self.weight)
        ids = torch.empty((x.shape[0], experts.per_token), dtype=torch.int32, device=x.device)
        weights = torch.empty(ids.shape, dtype=torch.float32, device=x.device)
        ops.moe_route(
            ids,
            weights,
            logits,
            experts.sigmoid,
            experts.renormalize,
            self.e_score_correction_bias,
            groups=experts.groups,
            top_groups=experts.top_groups,
            group_best=experts.group_best,
            scale=experts.scale,
        )
        return ids, weights


class DeepseekMoE(FeedForward):
    """x [N, H] -> [N, H]: the experts of each token, and those that every token goes through."""

    shared_experts: GatedMLP | None

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        experts = spec.experts
        assert experts is not None
        self.gate = DeepseekRouter(spec)
        self.experts = Experts(spec)
        self.shared_experts = GatedMLP(spec, experts.shared * experts.inner) if experts.shared else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.experts(x, self.gate(x))
        return out if self.shared_experts is None else out.add_(self.shared_experts(x))


class DeepseekDecoderLayer(LlamaDecoderLayer):
    attention_class = LatentAttention

    @staticmethod
    def feed_forward(spec: ModelSpec, layer: int) -> FeedForward:
        assert spec.experts is not None
        return DeepseekMoE(spec) if spec.experts.layers[layer] else GatedMLP(spec)


class DeepseekModel(LlamaModel):
    layer_class = DeepseekDecoderLayer


class DeepseekV2ForCausalLM(LlamaForCausalLM):
    """How experts are chosen and what the scores are multiplied by stands in the spec."""

    model_class = DeepseekModel
