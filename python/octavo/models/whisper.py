"""Whisper (Radford et al., 2022): an encoder over log-mel frames, and a decoder that attends to its output.

Both are pre-norm transformers with plain layer norms, exact GELU and positions from a table. The encoder's
two convolutions halve its input; what it yields becomes keys and values of every decoder layer once, in the
blocks of the request's cross group, and stays there for all tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from octavo.hf_config import ModelSpec
from octavo.layers.attention import AttentionContext
from octavo.layers.cross_attention import CrossAttention, EncoderAttention, SelfAttention
from octavo.layers.embedding import Embedding, Head, PositionTable
from octavo.layers.layer import Layer
from octavo.layers.linear import Linear
from octavo.layers.norm import LayerNorm


class _Layer(Layer):
    """What layers of both halves end in; the checkpoint has these names beside the attention's."""

    def __init__(self, inner: int, spec: ModelSpec) -> None:
        super().__init__()
        dtype, hidden = getattr(torch, spec.dtype), spec.hidden_size
        self.self_attn_layer_norm = LayerNorm(hidden, spec.rms_eps, dtype=dtype)
        self.final_layer_norm = LayerNorm(hidden, spec.rms_eps, dtype=dtype)
        self.fc1 = Linear(hidden, inner, bias=True, dtype=dtype)
        self.fc2 = Linear(inner, hidden, bias=True, dtype=dtype)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add to x [N, H] in place."""
        return x.add_(self.fc2(F.gelu(self.fc1(self.final_layer_norm(x)))))


class WhisperEncoderLayer(_Layer):
    def __init__(self, spec: ModelSpec) -> None:
        assert spec.encoder is not None
        super().__init__(spec.encoder.intermediate_size, spec)
        self.self_attn = EncoderAttention(
            spec.hidden_size, spec.encoder.num_heads, getattr(torch, spec.dtype)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += self.self_attn(self.self_attn_layer_norm(x))
        x = self.feed_forward(x)
        # Large checkpoints come close to what float16 holds.
        return x.clamp_(-64504, 64504) if x.dtype == torch.float16 else x


class WhisperDecoderLayer(_Layer):
    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__(spec.intermediate_size, spec)
        self.self_attn = SelfAttention(spec, layer)
        self.encoder_attn = CrossAttention(spec, layer)
        self.encoder_attn_layer_norm = LayerNorm(
            spec.hidden_size, spec.rms_eps, dtype=getattr(torch, spec.dtype)
        )

    def forward(self, x: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        x += self.self_attn(self.self_attn_layer_norm(x), ctx)
        x += self.encoder_attn(self.encoder_attn_layer_norm(x), ctx)
        return self.feed_forward(x)


class _Convolution(Layer):
    """Three taps over time: x [C, T] -> [H, T / stride]."""

    def __init__(self, channels: int, hidden: int, dtype: torch.dtype, *, stride: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, channels, 3, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(hidden, dtype=dtype), requires_grad=False)
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x, self.weight, self.bias, stride=self.stride, padding=1)


class WhisperEncoder(Layer):
    """features [bins, frames] -> [length, H]."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        assert spec.encoder is not None
        dtype, hidden = getattr(torch, spec.dtype), spec.hidden_size
        self.conv1 = _Convolution(spec.encoder.mel_bins, hidden, dtype, stride=1)
        self.conv2 = _Convolution(hidden, hidden, dtype, stride=2)
        self.embed_positions = PositionTable(spec.encoder.length, hidden, dtype)
        self.layers = nn.ModuleList(WhisperEncoderLayer(spec) for _ in range(spec.encoder.num_layers))
        self.layer_norm = LayerNorm(hidden, spec.rms_eps, dtype=dtype)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(features)))).T
        x = x + self.embed_positions.weight
        for layer in self.layers:
            x = layer(x)
        out: torch.Tensor = self.layer_norm(x)
        return out


class WhisperDecoder(Layer):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        dtype = getattr(torch, spec.dtype)
        self.embed_tokens = Embedding(spec)
        self.embed_positions = PositionTable(spec.max_position, spec.hidden_size, dtype)
        self.layers = nn.ModuleList(WhisperDecoderLayer(spec, layer) for layer in range(spec.num_layers))
        self.layer_norm = LayerNorm(spec.hidden_size, spec.rms_eps, dtype=dtype)

    def forward(self, token_id: torch.Tensor, position: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        x = self.embed_tokens(token_id) + self.embed_positions(position)
        for layer in self.layers:
            x = layer(x, ctx)
        out: torch.Tensor = self.layer_norm(x)
        return out


class WhisperModel(Layer):
    """The two halves, under the checkpoint's names."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.encoder = WhisperEncoder(spec)
        self.decoder = WhisperDecoder(spec)

    def forward(self, token_id: torch.Tensor, position: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        hidden: torch.Tensor = self.decoder(token_id, position, ctx)
        return hidden


class WhisperForConditionalGeneration(Layer):
    """See octavo.models.registry.EncoderDecoder for what its methods take and return."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.model = WhisperModel(spec)
        self.lm_head = Head(spec, self.model.decoder.embed_tokens if spec.tie_embeddings else None)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        encoded: torch.Tensor = self.model.encoder(features.to(self.lm_head.weight.dtype))
        return encoded

    def store(self, encoded: torch.Tensor, slots: torch.Tensor, ctx: AttentionContext) -> None:
        layers: Iterable[Any] = self.model.decoder.layers
        for layer in layers:
            layer.encoder_attn.store(encoded, slots, ctx)

    def forward(self, token_id: torch.Tensor, position: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        hidden: torch.Tensor = self.model(token_id, position, ctx)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.lm_head(hidden)
        return logits
