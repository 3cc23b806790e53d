"""ModelSpec: a model's shape, checked, as the rest of the engine sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.hf.encoder import DecoderStart, EncoderSpec, attention_parameters, mlp_parameters
from octavo.hf.experts import ExpertSpec
from octavo.hf.latent import LatentSpec
from octavo.hf.names import TextTower
from octavo.hf.quantization import Quantization
from octavo.hf.rope import RopeSpec
from octavo.hf.state import StateSpec


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model's shape, as far as the engine must know it."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    max_model_len: int  # positions the rotary table is made for
    rms_eps: float
    hidden_act: str  # silu | gelu_tanh | gelu
    tie_embeddings: bool
    attention_bias: bool  # q, k and v
    attention_out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: int | None
    layer_windows: tuple[int, ...]  # one for each layer; 0: full attention
    rope: RopeSpec
    dtype: str  # float32 | bfloat16 | float16
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    attention_scale: float  # of a score, before any cap
    attn_soft_cap: float = 0.0  # of scores; 0: none
    final_soft_cap: float = 0.0  # of logits; 0: none
    attention_sinks: bool = False  # a learned logit without a value, for each head
    chunked_windows: bool = False  # windows are chunks: a token sees its own chunk of so many
    local_rope: RopeSpec | None = None  # of layers with a window; None: as every layer
    unrotated: tuple[int, ...] = ()  # layers without rotary positions
    unit_heads: bool = False  # query and key heads of rotated layers are brought to length one
    temperature: tuple[float, float] | None = None  # (scale, floor) of queries in unrotated layers
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what each half of a layer adds
    logits_scale: float = 1.0  # what logits are divided by
    norm_offset: float = 0.0  # a norm multiplies by its weight and this
    sandwich_norms: bool = False  # both halves of a layer end in a norm too
    state: StateSpec | None = None  # of recurrent layers, which keep no keys and values
    latent: LatentSpec | None = None  # attention that caches one vector of a token for all heads
    experts: ExpertSpec | None = None
    encoder: EncoderSpec | None = None  # every layer attends to its output too
    start: DecoderStart | None = None  # of outputs; where there is an encoder
    mxfp4: bool = False  # experts are stored in 4 bits
    quantization: Quantization | None = None  # of linear layers
    renames: tuple[tuple[str, str], ...] = ()  # what checkpoints call parts of names, and the model
    skipped: tuple[str, ...] = ()  # beginnings of the names that are not loaded
    text_tower: TextTower | None = field(default=None, compare=False)
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    def name_of(self, stored: str) -> str | None:
        """Return the model's name of a tensor in a checkpoint; None for one that is not loaded."""
        name = stored if self.text_tower is None else self.text_tower.name_of(stored)
        if name is None or name.startswith(self.skipped):
            return None
        for old, new in self.renames:
            name = name.replace(old, new)
        return None if self.tie_embeddings and name == "lm_head.weight" else name

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def cached_size(self) -> int:
        """Values that the cache holds of one token in a layer with attention."""
        return 2 * self.kv_size if self.latent is None else self.latent.width

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Layers with keys and values: all but the recurrent ones."""
        recurrent = () if self.state is None else self.state.layers
        return tuple(layer for layer in range(self.num_layers) if layer not in recurrent)

    @property
    def cross_layers(self) -> tuple[int, ...]:
        """Numbers of the caches of the encoder's keys and values, one for each layer."""
        return () if self.encoder is None else tuple(range(self.num_layers, 2 * self.num_layers))

    def rope_of(self, layer: int) -> RopeSpec | None:
        """How a layer rotates queries and keys; None: not at all."""
        if layer in self.unrotated:
            return None
        return self.rope if self.local_rope is None or not self.layer_windows[layer] else self.local_rope

    @property
    def context_limit(self) -> int:
        """Longest sequence the model was made for, rotary scaling included."""
        if self.local_rope is not None:
            return self.max_position  # stretching half the layers is part of the training
        if self.rope.kind in ("linear", "dynamic"):
            return int(self.max_position * self.rope.factor)
        if self.rope.kind == "yarn":
            return max(self.max_position, int(self.rope.original_max_position * self.rope.factor))
        return self.max_position

    @property
    def default_length(self) -> int:
        """What max_model_len is unless asked for: a dynamic table is exact only up to max_position."""
        return self.max_position if self.rope.kind == "dynamic" else self.context_limit

    @property
    def num_parameters(self) -> int:
        """Elements of all weights; a tied head counts once."""
        hidden, inter = self.hidden_size, self.intermediate_size
        if self.encoder is not None:
            layer = 2 * attention_parameters(hidden) + mlp_parameters(hidden, inter) + 6 * hidden
            tables = (1 if self.tie_embeddings else 2) * self.vocab_size + self.max_position
            decoder = self.num_layers * layer + 2 * hidden + tables * hidden
            return self.encoder.parameters(hidden) + decoder
        attention = hidden * (2 * self.q_size + 2 * self.kv_size)
        attention += (self.q_size + 2 * self.kv_size) * self.attention_bias + hidden * self.attention_out_bias
        attention += 2 * self.head_dim * self.qk_norm + self.num_heads * self.attention_sinks
        if self.latent is not None:
            attention = self.latent.parameters(hidden, self.num_heads, bias=self.attention_bias)
        mixers = attention * len(self.attention_layers)
        if self.state is not None:
            mixers += self.state.layer_parameters(hidden) * len(self.state.layers)
        norms = (4 if self.sandwich_norms else 2) * hidden
        mlp = 3 * hidden * inter + (2 * inter + hidden) * self.mlp_bias
        heads = 1 if self.tie_embeddings else 2
        with_experts = self.experts.layers.count(True) if self.experts is not None else 0
        blocks = self.num_layers * norms + (self.num_layers - with_experts) * mlp
        blocks += with_experts * (self.experts.parameters(hidden) if self.experts is not None else 0)
        return mixers + blocks + hidden + heads * self.vocab_size * hidden
