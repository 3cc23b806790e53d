"""Gemma 2 (Gemma Team, 2024): Gemma 3's layers without norms of query and key heads, under soft caps."""

from __future__ import annotations

from octavo.models.gemma3 import GemmaModel
from octavo.models.llama import LlamaForCausalLM


class Gemma2ForCausalLM(LlamaForCausalLM):
    """Every other layer slides; scores and logits are capped, as the spec says."""

    model_class = GemmaModel
