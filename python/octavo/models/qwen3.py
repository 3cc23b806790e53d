"""Qwen3 (Yang et al., 2025): Llama's decoder that norms every query and key head before it is rotated."""

from __future__ import annotations

from octavo.models.llama import LlamaForCausalLM


class Qwen3ForCausalLM(LlamaForCausalLM):
    """The norms are spec.qk_norm, which its line in ARCHITECTURES sets."""
