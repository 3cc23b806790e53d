"""Mistral (Jiang et al., 2023): Llama's decoder whose layers may attend within a sliding window only."""

from __future__ import annotations

from octavo.models.llama import LlamaForCausalLM


class MistralForCausalLM(LlamaForCausalLM):
    """The window of every layer is spec.layer_windows, from config.json's sliding_window."""
