"""config.json and generation_config.json of a Hugging Face folder -> ModelSpec.

Only JSON is read: no torch, no transformers and no code from the folder. Every number is checked here, once,
so the rest of the engine may trust a ModelSpec. Both spellings of rotary scaling are understood:
`rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (before).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from octavo.config import parse_dtype
from octavo.errors import ModelError, did_you_mean

MAX_JSON_BYTES = 16 << 20
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")

_MAX_DIM = 1 << 24  # of any one dimension: far above every known model, far below what could overflow


@dataclass(frozen=True)
class Architecture:
    """What an architecture's name says about a model beyond its config.json."""

    module: str  # under octavo.models; the class there has the architecture's name
    qkv_bias: bool | None = None  # None: config.json's attention_bias decides, for the output too
    qk_norm: bool = False
    windows: str = "none"  # none | all (every layer has sliding_window) | layered (see _layer_windows)
    defaults: Mapping[str, Any] = field(default_factory=dict)  # for keys config.json leaves out


_MISTRAL = {"num_key_value_heads": 8, "sliding_window": 4096}
_QWEN3 = {"head_dim": 128}

# A new model is one line here and one file in octavo/models.
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "LlamaForCausalLM": Architecture("llama"),
        "MistralForCausalLM": Architecture("mistral", windows="all", defaults=_MISTRAL),
        "Qwen2ForCausalLM": Architecture("qwen2", qkv_bias=True, windows="layered"),
        "Qwen3ForCausalLM": Architecture("qwen3", qk_norm=True, windows="layered", defaults=_QWEN3),
    }
)


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary position embedding: how a position's angles are made (formulas in layers/rope.py)."""

    kind: str = "default"
    theta: float = 10000.0
    rotary_dim: int  # leading dimensions of a head that are rotated
    factor: float = 1.0
    original_max_position: int  # positions seen in pre-training; dynamic, llama3 and yarn measure from it
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None  # yarn; None: from factor and the mscales
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


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
    hidden_act: str  # silu | gelu_tanh
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
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def context_limit(self) -> int:
        """Longest sequence the model was made for, rotary scaling included."""
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
        attention = hidden * (2 * self.q_size + 2 * self.kv_size) + 2 * hidden
        attention += (self.q_size + 2 * self.kv_size) * self.attention_bias + hidden * self.attention_out_bias
        attention += 2 * self.head_dim * self.qk_norm
        mlp = 3 * hidden * inter + (2 * inter + hidden) * self.mlp_bias
        heads = 1 if self.tie_embeddings else 2
        return self.num_layers * (attention + mlp) + hidden + heads * self.vocab_size * hidden


def load_model_spec(folder: Path, *, max_model_len: int | None = None, dtype: str = "auto") -> ModelSpec:
    """Read a model folder's config.json and generation_config.json.

    `max_model_len` and `dtype` replace what the files say. Raises ModelError if config.json is missing, is
    not JSON, names no supported architecture, or holds a value that cannot be.
    """
    raw = read_json(folder / "config.json")
    if raw is None:
        remedy = "use the folder that a model was downloaded or saved to"
        raise ModelError(f"{folder / 'config.json'} is missing: {remedy}")
    spec = _spec_of(_Reader(raw, folder / "config.json"), read_json(folder / "generation_config.json") or {})
    if dtype != "auto":
        spec = dataclasses.replace(spec, dtype=parse_dtype(dtype))
    return dataclasses.replace(spec, max_model_len=max_model_len or spec.default_length)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, None if there is no file. Raises ModelError for anything else."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelError(f"{path} has {size} bytes: at most {MAX_JSON_BYTES} are read")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({error}): download it again") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__} where an object is expected")
    return value


class _Reader:
    """Typed access to a JSON object.

    A missing key takes the architecture's default first; null takes the caller's, as transformers has it.
    """

    def __init__(self, raw: Mapping[str, Any], path: Path, defaults: Mapping[str, Any] | None = None) -> None:
        self.raw = raw
        self.path = path
        self._defaults = defaults or {}

    def error(self, key: str, value: object, remedy: str) -> ModelError:
        return ModelError(f"{self.path}: {key}={value!r} is not valid: {remedy}")

    def get(self, key: str, default: Any = None) -> Any:
        value = self.raw.get(key, self._defaults.get(key))
        return default if value is None else value

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = _MAX_DIM) -> int:
        value = self.get(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(key, value, f"an integer from {low} to {high} is expected")
        return value

    def number(self, key: str, default: float | None = None, low: float = 0.0) -> float:
        value = self.get(key, default)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= low:
            raise self.error(key, value, f"a finite number above {low:g} is expected")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false is expected")
        return value


def _architecture(config: _Reader) -> tuple[str, Architecture]:
    names = config.get("architectures", [])
    supported = ", ".join(ARCHITECTURES)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise config.error("architectures", names, f"a list with one of {supported} is expected")
    for name in names:
        if name in ARCHITECTURES:
            return name, ARCHITECTURES[name]
    remedy = f"supported are {supported}{did_you_mean(names[0], ARCHITECTURES)}"
    raise config.error("architectures", names, remedy)


def _spec_of(config: _Reader, generation: Mapping[str, Any]) -> ModelSpec:
    name, architecture = _architecture(config)
    config = _Reader(config.raw, config.path, architecture.defaults)
    if config.get("quantization_config") is not None:
        remedy = "quantized checkpoints are not supported, use the float32, bfloat16 or float16 one"
        raise config.error("quantization_config", "...", remedy)
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads", high=1 << 16)
    kv_heads = config.integer("num_key_value_heads", heads, high=1 << 16)
    if heads % kv_heads:
        raise config.error("num_key_value_heads", kv_heads, f"it must divide num_attention_heads={heads}")
    if config.get("head_dim") is None and hidden % heads:
        raise config.error(
            "hidden_size", hidden, f"num_attention_heads={heads} must divide it, or add head_dim"
        )
    head_dim = config.integer("head_dim", hidden // heads, high=1 << 12)
    if head_dim % 2:
        raise config.error("head_dim", head_dim, "it must be even")
    act = config.get("hidden_act", "silu")
    if not isinstance(act, str) or act not in ACTIVATIONS:
        raise config.error("hidden_act", act, f"supported are {', '.join(ACTIVATIONS)}")
    num_layers = config.integer("num_hidden_layers", high=1 << 12)
    vocab_size = config.integer("vocab_size")
    max_position = config.integer("max_position_embeddings", 2048, high=(1 << 31) - 1)
    bias = config.flag("attention_bias")
    windows = _layer_windows(config, architecture.windows, num_layers)
    return ModelSpec(
        architecture=name,
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_position=max_position,
        max_model_len=max_position,
        rms_eps=config.number("rms_norm_eps", 1e-6),
        hidden_act=ACTIVATIONS[act],
        tie_embeddings=config.flag("tie_word_embeddings"),
        attention_bias=bias if architecture.qkv_bias is None else architecture.qkv_bias,
        attention_out_bias=bias if architecture.qkv_bias is None else False,
        mlp_bias=config.flag("mlp_bias"),
        qk_norm=architecture.qk_norm,
        sliding_window=max(windows) or None,
        layer_windows=windows,
        rope=_rope(config, head_dim, max_position),
        dtype=_checkpoint_dtype(config),
        eos_token_ids=_token_ids(config, generation, "eos_token_id", vocab_size),
        bos_token_id=next(iter(_token_ids(config, generation, "bos_token_id", vocab_size)), None),
        raw=MappingProxyType(dict(config.raw)),
    )


def _checkpoint_dtype(config: _Reader) -> str:
    """transformers 5 writes `dtype`, earlier ones `torch_dtype`; a file without either means float32."""
    value = config.get("dtype", config.get("torch_dtype", "float32"))
    try:
        dtype = parse_dtype(value)
    except ValueError:
        dtype = "auto"
    if dtype == "auto":
        raise config.error("dtype", value, "float32, bfloat16 or float16 is expected")
    return dtype


def _layer_windows(config: _Reader, rule: str, num_layers: int) -> tuple[int, ...]:
    """Return each layer's sliding window in tokens, 0 for full attention.

    `layered` is Qwen's rule: `layer_types` says which layers slide, else those from max_window_layers on.
    """
    if rule == "none" or config.get("sliding_window") is None:
        return (0,) * num_layers
    if rule == "layered" and not config.flag("use_sliding_window"):
        return (0,) * num_layers
    window = config.integer("sliding_window", high=(1 << 31) - 1)
    if rule == "all":
        return (window,) * num_layers
    types = config.get("layer_types")
    if types is None:
        first = config.integer("max_window_layers", 28, low=0)
        return tuple(window if layer >= first else 0 for layer in range(num_layers))
    known = {"sliding_attention": window, "full_attention": 0}
    names = types if isinstance(types, list) else []
    if len(names) != num_layers or any(name not in list(known) for name in names):
        remedy = f"a list of {num_layers} (num_hidden_layers) names out of {', '.join(known)} is expected"
        raise config.error("layer_types", types, remedy)
    return tuple(known[name] for name in names)


def _rope(config: _Reader, head_dim: int, max_position: int) -> RopeSpec:
    new, legacy = config.get("rope_parameters"), config.get("rope_scaling")
    key = "rope_parameters" if new is not None else "rope_scaling"
    value = new if new is not None else legacy if legacy is not None else {}
    if not isinstance(value, dict) or any(isinstance(item, dict) for item in value.values()):
        raise config.error(key, value, "one flat object for all layers is expected")
    rope = _Reader(value, config.path)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_KINDS:
        hint = did_you_mean(kind, ROPE_KINDS) if isinstance(kind, str) else ""
        raise config.error(f"{key}.rope_type", kind, f"supported are {', '.join(ROPE_KINDS)}{hint}")
    share = rope.number("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    rotary_dim = int(head_dim * share)
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        remedy = f"head_dim={head_dim} times it must be an even number up to head_dim"
        raise config.error(f"{key}.partial_rotary_factor", share, remedy)
    original = config.get("original_max_position_embeddings", max_position)
    original = rope.integer("original_max_position_embeddings", original, high=(1 << 31) - 1)
    spec = RopeSpec(
        kind=kind,
        theta=rope.number("rope_theta", config.get("rope_theta", 10000.0)),
        rotary_dim=rotary_dim,
        factor=1.0 if kind == "default" else _rope_factor(rope, kind, max_position, original),
        original_max_position=max_position if kind in ("default", "linear", "dynamic") else original,
        low_freq_factor=rope.number("low_freq_factor", 1.0),
        high_freq_factor=rope.number("high_freq_factor", 4.0),
        attention_factor=rope.optional_number("attention_factor"),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        mscale=_mscale(rope, "mscale"),
        mscale_all_dim=_mscale(rope, "mscale_all_dim"),
        truncate=rope.flag("truncate", True),
    )
    if spec.kind == "llama3" and spec.high_freq_factor <= spec.low_freq_factor:
        remedy = f"it must be above low_freq_factor={spec.low_freq_factor:g}"
        raise config.error(f"{key}.high_freq_factor", spec.high_freq_factor, remedy)
    return spec


def _rope_factor(rope: _Reader, kind: str, max_position: int, original: int) -> float:
    """A scaling below 1 would shrink the context; yarn may leave the factor to the two lengths."""
    factor = rope.number("factor", max_position / original if kind == "yarn" else None)
    if factor < 1:
        raise rope.error("factor", factor, "a number of at least 1 is expected")
    return factor


def _mscale(rope: _Reader, key: str) -> float | None:
    """Zero means unset: the paper's attention factor is then used."""
    return rope.optional_number(key) if rope.get(key) else None


def _token_ids(config: _Reader, generation: Mapping[str, Any], key: str, vocab_size: int) -> tuple[int, ...]:
    """Return the ids of both files without repeats, generation_config.json's first."""
    found: list[int] = []
    for source in (generation, config.raw):
        value = source.get(key)
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
                raise config.error(key, value, f"token ids below vocab_size={vocab_size} are expected")
            if token not in found:
                found.append(token)
    return tuple(found)
