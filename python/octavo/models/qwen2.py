"""Qwen2 and Qwen2.5 (Yang et al., 2024): Llama's decoder with biases on queries, keys and values."""

from __future__ import annotations

from octavo.models.llama import LlamaForCausalLM


class Qwen2ForCausalLM(LlamaForCausalLM):
    """The biases are spec.attention_bias, which its line in ARCHITECTURES sets."""
