"""Memory of a model, from config.json and safetensors headers alone: weights, KV, activations, what fits.

The bounds are analytic, not measured: nothing is loaded and nothing runs, so a plan costs milliseconds and
can be made for a machine one does not have. Needs no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from octavo.hf.quantization import CACHE_SCALE, SCALE_NAMES, Quantization
from octavo.hf_config import ModelSpec
from octavo.plan.groups import LayerGroup, PoolCut, cut_pool, layer_groups
from octavo.weights.checkpoint import has_weights, open_checkpoint
from octavo.weights.safetensors_file import TensorInfo

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
KV_DTYPE_BYTES = {**DTYPE_BYTES, "fp8": 1}
SCORE_CHUNK_BYTES = 64 << 20  # logits of prompt logprobs held at once; see ModelRunner

# What a CUDA device takes besides. A graph's own memory is small, what its step holds is not: graphs share
# one pool, as large as the largest of them needs.
GRAPH_TOKENS = 2048  # tokens of the largest step that is captured
_GRAPHS_BYTES = 256 << 20  # launches of some hundred graphs
_WORKSPACE_BYTES = 512 << 20  # matrix products, attention plans, the step's columns
_SHARED_STATES = 1024  # of rows that share prefixes, at least (cuda/attention/sharing.h)
_RESERVE_BYTES = 1 << 30  # modules loaded on first use, and what the allocator cannot use

_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of a model at one precision."""

    spec: ModelSpec
    weights_bytes: int
    block_size: int
    max_num_batched_tokens: int
    max_num_seqs: int
    kv_cache_dtype: str = "auto"  # of config.KV_CACHE_DTYPES
    device: str = "cpu"
    graphs: bool = False  # whether steps are captured
    max_draft_tokens: int = 0

    @property
    def kv_dtype(self) -> str:
        """What keys and values are kept in: one of KV_DTYPE_BYTES. States are kept as they are."""
        return self.spec.dtype if self.kv_cache_dtype == "auto" else self.kv_cache_dtype

    @cached_property
    def cut(self) -> PoolCut:
        """Layers that share block tables, and how their blocks share the pool."""
        spec, size = self.spec, DTYPE_BYTES[self.spec.dtype]
        attention = layer_groups(spec.layer_windows, spec.attention_layers, chunked=spec.chunked_windows)
        if spec.latent is not None:
            attention = tuple(dataclasses.replace(group, latent=True) for group in attention)
        layer_bytes = self.block_size * self.token_layer_bytes
        if spec.encoder is not None:
            # As many layers, with blocks of as many bytes: one block of the pool is one of either.
            cross = LayerGroup(0, spec.cross_layers, 1, encoder_len=spec.encoder.length)
            return cut_pool((*attention, cross), layer_bytes, (), 0)
        if spec.state is None:
            return cut_pool(attention, layer_bytes, (), 0)
        state_bytes = len(spec.state.layers) * spec.state.layer_bytes(size)
        return cut_pool(attention, layer_bytes, spec.state.layers, state_bytes)

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """Layers that share block tables."""
        return self.cut.groups

    @property
    def block_bytes(self) -> int:
        """One block of the pool, which holds a whole number of blocks of any one group."""
        return self.cut.parent_bytes

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token in every layer that has them, or its latents."""
        return len(self.spec.attention_layers) * self.token_layer_bytes

    @property
    def state_bytes(self) -> int:
        """One state of all recurrent layers; 0 where there are none."""
        return sum(size for group, size in zip(self.groups, self.cut.block_bytes) if group.recurrent)

    @property
    def encoder_bytes(self) -> int:
        """Upper bound of what encoding one input holds at once, its features and keys and values included."""
        spec, size = self.spec, DTYPE_BYTES[self.spec.dtype]
        if spec.encoder is None:
            return 0
        return (spec.encoder.activations(spec.hidden_size) + 2 * spec.encoder.length * spec.kv_size) * size

    @property
    def token_layer_bytes(self) -> int:
        return self.spec.cached_size * KV_DTYPE_BYTES[self.kv_dtype]

    @property
    def activation_bytes(self) -> int:
        """Upper bound of what a step of max_num_batched_tokens and max_num_seqs samples holds at once."""
        return self.max_num_batched_tokens * self._token_activation_bytes + self.logits_bytes

    @property
    def _token_activation_bytes(self) -> int:
        spec, size = self.spec, DTYPE_BYTES[self.spec.dtype]
        attention = 2 * spec.q_size + 2 * spec.kv_size  # q, k, v and the output
        if spec.latent is not None:
            attention = spec.latent.activations(spec.num_heads)
        mlp = 3 * spec.intermediate_size  # gate and up, then their product
        if spec.experts is not None:
            mlp = max(mlp, spec.experts.activations(spec.hidden_size))
        # The projection, the convolution's output and the scan's.
        mixer = 0 if spec.state is None else spec.state.projected + spec.state.conv_size + spec.state.inner
        held = (3 * spec.hidden_size + max(attention, mlp, mixer)) * size  # residual, normed, output
        return held + self._quantized_bytes

    @property
    def _quantized_bytes(self) -> int:
        """What a quantized product holds of a token: its input in 32 and 8 bits, its output in 32."""
        spec = self.spec
        if spec.quantization is None or spec.quantization.scheme is None:
            return 0
        return max(5 * columns + 4 * rows for _, rows, columns in linear_shapes(spec))

    @property
    def logits_bytes(self) -> int:
        """Logits in float32 and in the model's dtype: of every sample, or of a chunk of prompt logprobs."""
        row = self.spec.vocab_size * (4 + DTYPE_BYTES[self.spec.dtype])
        drafted = min(self.max_num_seqs * (1 + self.max_draft_tokens), self.max_num_batched_tokens)
        return max(max(self.max_num_seqs, drafted) * row, SCORE_CHUNK_BYTES)

    @property
    def rope_bytes(self) -> int:
        tables = {self.spec.rope_of(layer) for layer in range(self.spec.num_layers)}
        return self.spec.max_model_len * 4 * sum(rope.rotary_dim for rope in tables if rope is not None)

    @property
    def device_parts(self) -> tuple[tuple[str, int], ...]:
        """What a CUDA device takes besides, by name; nothing on a CPU."""
        if self.device != "cuda":
            return ()
        workspace = _WORKSPACE_BYTES + self._shared_prefix_bytes
        parts = [("workspace", workspace), ("reserve", _RESERVE_BYTES)]
        if self.graphs:
            tokens = min(self.max_num_batched_tokens, GRAPH_TOKENS)
            held = tokens * self._token_activation_bytes + self.logits_bytes
            parts.insert(1, ("graphs", held + _GRAPHS_BYTES))
        return tuple(parts)

    @property
    def _shared_prefix_bytes(self) -> int:
        """Upper bound of what attention keeps of prefixes that rows share: a softmax state for each head."""
        if self.spec.latent is not None:
            return 0
        states = max(self.max_num_seqs + 1, _SHARED_STATES)
        return (self.max_num_seqs + 1 + states * self.spec.num_heads * (self.spec.head_dim + 2)) * 4

    @property
    def fixed_bytes(self) -> int:
        """Everything but the KV pool."""
        besides = sum(size for _, size in self.device_parts)
        return self.weights_bytes + self.activation_bytes + self.encoder_bytes + self.rope_bytes + besides

    def blocks_of(self, tokens: int) -> int:
        """Blocks of the pool that one request of this length takes when it is alone."""
        return self.blocks_for(tokens, 1)

    def blocks_for(self, tokens: int, batch: int) -> int:
        """Blocks of the pool that `batch` requests of this length take together, several to a block."""
        chunk = self.max_num_batched_tokens
        return sum(-(-batch * g.peak(tokens, self.block_size, chunk) // g.split) for g in self.groups)

    def most(self, tokens: int, blocks: int) -> int:
        """How many requests of this length `blocks` blocks of the pool hold at once."""
        low, high = 0, blocks * max(g.split for g in self.groups)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.blocks_for(tokens, middle) <= blocks else (low, middle - 1)
        return low

    def request_bytes(self, tokens: int) -> int:
        """The share of the pool that one request of this length takes among others."""
        chunk = self.max_num_batched_tokens
        shares = ((g.peak(tokens, self.block_size, chunk), g.split) for g in self.groups)
        return sum(peak * (self.block_bytes // split) for peak, split in shares)

    def longest(self, blocks: int) -> int:
        """The longest request, up to the model's limit, that `blocks` blocks of the pool hold; 0: none."""
        low, high = 0, max(self.spec.max_model_len, self.spec.context_limit)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.blocks_of(middle) <= blocks else (low, middle - 1)
        return low


@dataclass(frozen=True)
class CapacityRow:
    """How many requests of one context length fit."""

    context: int
    kv_bytes: int  # of one request
    batch: int  # requests that fit at once; 0: not even one


def capacity_table(footprint: Footprint, memory: int, contexts: Iterable[int]) -> list[CapacityRow]:
    """Return one row for each context length: how many requests of it fit into `memory` bytes at once."""
    room = max(memory - footprint.fixed_bytes, 0) // footprint.block_bytes
    room = max(room - 1, 0)  # the null block holds nothing
    rows = []
    for context in contexts:
        rows.append(CapacityRow(context, footprint.request_bytes(context), footprint.most(context, room)))
    return rows


def measure_weights(folder: Path, spec: ModelSpec, load_format: str) -> tuple[int, str]:
    """Return the bytes of the weights at spec.dtype, and where the number comes from.

    Raises WeightsError if a safetensors header is malformed.
    """
    size, quantization = DTYPE_BYTES[spec.dtype], spec.quantization
    if load_format == "dummy" or not has_weights(folder):
        held = spec.num_parameters * size
        if quantization is not None:
            shapes = [shape for name, *shape in linear_shapes(spec) if quantization.converts(name)]
            held += sum(quantization.linear_bytes(*shape) - math.prod(shape) * size for shape in shapes)
        return held, f"{spec.num_parameters:,} parameters by config.json"
    with open_checkpoint(folder) as checkpoint:
        named = [(spec.name_of(stored), info) for stored, info in checkpoint.tensors.items()]
        counts = [_held(name, info, spec) for name, info in named if name is not None]
    elements = sum(count for count, _ in counts)
    return sum(held for _, held in counts), f"{elements:,} parameters by the safetensors headers"


def linear_shapes(spec: ModelSpec) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of every linear layer, by a decoder's usual names. Those of experts are none."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    attention = {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size}
    for layer in range(spec.num_layers):
        path = f"model.layers.{layer}"
        if layer in spec.attention_layers:
            yield from ((f"{path}.self_attn.{part}_proj", rows, hidden) for part, rows in attention.items())
            yield f"{path}.self_attn.o_proj", hidden, spec.q_size
        elif spec.state is not None:
            yield f"{path}.mamba.in_proj", spec.state.projected, hidden
            yield f"{path}.mamba.out_proj", hidden, spec.state.inner
        if spec.experts is None or not spec.experts.layers[layer]:
            yield from ((f"{path}.mlp.{part}_proj", inner, hidden) for part in ("gate", "up"))
            yield f"{path}.mlp.down_proj", hidden, inner


def _held(name: str, info: TensorInfo, spec: ModelSpec) -> tuple[int, int]:
    """A stored tensor's parameters, and the bytes that hold them. Scales are part of their weight."""
    quantization: Quantization | None = spec.quantization
    if CACHE_SCALE.fullmatch(name):
        return 0, 0
    elements = _elements(info, mxfp4=spec.mxfp4)
    module, _, kind = name.rpartition(".")
    if quantization is not None and quantization.converts(module):
        if kind in SCALE_NAMES:
            return 0, 0
        if kind == "weight" and len(info.shape) == 2:
            return elements, quantization.linear_bytes(*info.shape)
    return elements, elements * DTYPE_BYTES[spec.dtype]


def _elements(info: TensorInfo, *, mxfp4: bool) -> int:
    """MXFP4 is unpacked when it is loaded: a byte holds two weights, and scales become part of them."""
    if not mxfp4 or info.dtype != "U8":
        return info.num_elements
    return 0 if info.name.endswith("_scales") else 2 * info.num_elements


def format_bytes(size: int) -> str:
    """Return a size in words: 1.50 GiB, 12.0 MiB, 3 KiB."""
    if size >= _GIB:
        return f"{size / _GIB:.2f} GiB"
    if size >= 1 << 20:
        return f"{size / (1 << 20):.1f} MiB"
    return f"{-(-size // 1024)} KiB"
