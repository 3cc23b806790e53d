"""Architecture name -> model class. A model's code is imported when it is first asked for."""

from __future__ import annotations

import importlib
from typing import Protocol

import torch

from octavo.errors import ModelError, did_you_mean
from octavo.hf_config import ARCHITECTURES, ModelSpec
from octavo.layers.attention import AttentionContext
from octavo.layers.invariance import batch_invariance
from octavo.layers.linear import weights_without_memory
from octavo.layers.quantized import quantize_linears


class CausalLM(Protocol):
    """What the runner needs of a model, which is also a torch.nn.Module with the checkpoint's names."""

    def forward(self, token_id: torch.Tensor, position: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        """token_id, position [N] int32 -> hidden [N, H] after the last norm."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [M, H] -> [M, V] of the model's dtype, or float32."""


class EncoderDecoder(CausalLM, Protocol):
    """What the runner needs besides of a model with an encoder."""

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """features [bins, frames] float32 -> [L, H]."""

    def store(self, encoded: torch.Tensor, slots: torch.Tensor, ctx: AttentionContext) -> None:
        """Write every layer's keys and values of encoded [L, H] to the slots [L] int64 of its cross cache."""


def resolve(architecture: str) -> type[torch.nn.Module]:
    """Return the class of an architecture. Raises ModelError, naming those there are, for an unknown one."""
    entry = ARCHITECTURES.get(architecture)
    if entry is None:
        hint = did_you_mean(architecture, ARCHITECTURES)
        raise ModelError(f"architecture {architecture!r} is not one of {', '.join(ARCHITECTURES)}{hint}")
    module = importlib.import_module(f"octavo.models.{entry.module}")
    found: type[torch.nn.Module] = getattr(module, architecture)
    return found


def build(spec: ModelSpec, device: str = "cpu", *, batch_invariant: bool = False) -> torch.nn.Module:
    """Return a model of this shape on a device in eval mode, its weights not yet set.

    `batch_invariant`: its layers give a row the same bits in any company. REQUIRES then: the plan allows it.
    """
    made = resolve(spec.architecture)
    with torch.inference_mode(False), torch.device(device), batch_invariance(batch_invariant):
        if spec.quantization is None or spec.quantization.scheme is None:
            return made(spec).eval()
        with weights_without_memory():
            model = made(spec)
        quantize_linears(model, spec.quantization)
        return model.eval()
