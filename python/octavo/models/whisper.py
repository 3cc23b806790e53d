"""Whisper (Radford et al., 2022): an encoder over log-mel frames, and a decoder that attends to its output.

Both are pre-norm transformers with plain layer norms, exact GELU and positions from a table. The encoder's
two convolutions halve its input; what it yields becomes keys and values of every decoder layer once, in the
blocks of the request's cross group, and stays there for all tokens.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from octavo.hf_config import ModelSpec
from octavo.layers.attention import AttentionContext
from octavo.layers.convolution import Convolution
from octavo.layers.cross_attention import CrossAttention, EncoderAttention, EncoderDecoderLayer, SelfAttention
from octavo.layers.embedding import Embedding, Head, PositionTable
from octavo.layers.layer import Layer
from octavo.layers.norm import LayerNorm


class WhisperEncoderLayer(EncoderDecoderLayer):
    def __init__(self, spec: ModelSpec) -> None:
        assert spec.encoder is not None
        super().__init__(spec.encoder.intermediate_size, spec)
        self.self_attn = EncoderAttention(spec, spec.encoder.num_heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += self.self_attn(self.self_attn_layer_norm(x))
        x = self.feed_forward(x)
        # Large checkpoints come close to what float16 holds.
        return x.clamp_(-64504, 64504) if x.dtype == torch.float16 else x


class WhisperDecoderLayer(EncoderDecoderLayer):
    def __init__(self, spec: ModelSpec, layer: int) -> None:
        super().__init__(spec.intermediate_size, spec)
        self.self_attn = SelfAttention(spec, layer)
        self.encoder_attn = CrossAttention(spec, layer)
        self.encoder_attn_layer_norm = LayerNorm(spec)

    def forward(self, x: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        x += self.self_attn(self.self_attn_layer_norm(x), ctx)
        x += self.encoder_attn(self.encoder_attn_layer_norm(x), ctx)
        return self.feed_forward(x)


class WhisperEncoder(Layer):
    """features [bins, frames] -> [length, H]."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        assert spec.encoder is not None
        self.conv1 = Convolution(spec, spec.encoder.mel_bins, stride=1)
        self.conv2 = Convolution(spec, spec.hidden_size, stride=2)
        self.embed_positions = PositionTable(spec.encoder.length, spec)
        self.layers = nn.ModuleList(WhisperEncoderLayer(spec) for _ in range(spec.encoder.num_layers))
        self.layer_norm = LayerNorm(spec)

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
        self.embed_tokens = Embedding(spec)
        self.embed_positions = PositionTable(spec.max_position, spec)
        self.layers = nn.ModuleList(WhisperDecoderLayer(spec, layer) for layer in range(spec.num_layers))
        self.layer_norm = LayerNorm(spec)

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
        for layer in self.model.decoder.layers:
            cast(WhisperDecoderLayer, layer).encoder_attn.store(encoded, slots, ctx)

    def forward(self, token_id: torch.Tensor, position: torch.Tensor, ctx: AttentionContext) -> torch.Tensor:
        hidden: torch.Tensor = self.model.decoder(token_id, position, ctx)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.lm_head(hidden)
        return logits
