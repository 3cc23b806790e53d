"""config.json and generation_config.json of a Hugging Face folder -> ModelSpec.

Only JSON is read: no torch, no transformers and no code from the folder. Every number is checked here, once,
so the rest of the engine may trust a ModelSpec. Both spellings of rotary scaling are understood:
`rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (before).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from octavo.config import parse_dtype
from octavo.errors import ModelError, did_you_mean, shown
from octavo.hf.architectures import ARCHITECTURES, Architecture
from octavo.hf.encoder import DecoderStart, EncoderSpec, decoder_start, encoder_spec
from octavo.hf.experts import ExpertRule, experts
from octavo.hf.latent import LatentSpec, deepseek_experts, latent_scale, latent_spec
from octavo.hf.quantization import read_quantization
from octavo.hf.reader import MAX_LENGTH, Reader, read_json
from octavo.hf.rope import RopeSpec, ropes
from octavo.hf.spec import ModelSpec
from octavo.hf.state import StateSpec, state_spec
from octavo.hf.windows import layer_windows, unrotated

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "DecoderStart",
    "EncoderSpec",
    "ModelSpec",
    "RopeSpec",
    "StateSpec",
    "load_model_spec",
    "read_json",
]

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def load_model_spec(
    folder: Path,
    *,
    max_model_len: int | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
) -> ModelSpec:
    """Read a model folder's config.json and generation_config.json.

    `max_model_len` and `dtype` replace what the files say; `quantization` is for a checkpoint that has none.
    Raises ModelError if config.json is missing, is not JSON, names no supported architecture, or holds a
    value that cannot be, ValueError for a quantization that cannot be had.
    """
    raw = read_json(folder / "config.json")
    if raw is None:
        remedy = "use the folder that a model was downloaded or saved to"
        raise ModelError(f"{folder / 'config.json'} is missing: {remedy}")
    config, generation = Reader(raw, folder / "config.json"), read_json(folder / "generation_config.json")
    spec = _spec_of(config, generation or {}, quantization)
    if dtype != "auto":
        spec = dataclasses.replace(spec, dtype=parse_dtype(dtype))
    return dataclasses.replace(spec, max_model_len=max_model_len or spec.default_length)


def _flat(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Lay a text_config over the file it stands in. Null in it counts for nothing."""
    text = raw.get("text_config", {})
    if not isinstance(text, dict):
        raise ModelError(f"{path}: text_config={shown(text)} is not valid: an object is expected")
    of_all = {key: raw[key] for key in ("architectures", "tie_word_embeddings", "eos_token_id") if key in raw}
    return {**raw, **{key: value for key, value in text.items() if value is not None}, **of_all}


def _architecture(config: Reader) -> tuple[str, Architecture]:
    names = config.get("architectures", [])
    supported = ", ".join(ARCHITECTURES)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise config.error("architectures", names, f"a list with one of {supported} is expected")
    for name in names:
        if name in ARCHITECTURES:
            return name, ARCHITECTURES[name]
    remedy = f"supported are {supported}{did_you_mean(names[0], ARCHITECTURES)}"
    raise config.error("architectures", names, remedy)


def _spec_of(config: Reader, generation: Mapping[str, Any], wanted: str | None) -> ModelSpec:
    name, architecture = _architecture(config)
    raw = config.raw if architecture.text_tower is None else _flat(config.raw, config.path)
    config = Reader(raw, config.path, architecture.defaults)
    never = None if architecture.experts is None else "mixtures of experts"
    if architecture.deepseek or architecture.speech:
        never = "models of latent attention" if architecture.deepseek else "speech models"
    quantization = read_quantization(config, wanted, never=never, mxfp4=architecture.sinks)
    if architecture.speech:
        return _speech(config, generation, name, architecture)
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads", high=1 << 16)
    kv_heads = config.integer("num_key_value_heads", heads, high=1 << 16)
    if heads % kv_heads:
        raise config.error("num_key_value_heads", kv_heads, f"it must divide num_attention_heads={heads}")
    latent = latent_spec(config, heads) if architecture.deepseek else None
    head_dim = _head_dim(config, hidden, heads) if latent is None else latent.head_dim
    num_layers = config.integer("num_hidden_layers", high=1 << 12)
    vocab_size = config.integer("vocab_size")
    max_position = config.integer("max_position_embeddings", 2048, high=MAX_LENGTH)
    bias = config.flag("attention_bias")
    windows = layer_windows(config, architecture.windows, num_layers)
    rule = architecture.experts or ExpertRule()
    rotated = head_dim if latent is None else latent.rope_dim
    rope, local_rope = ropes(config, rotated, max_position, dual=architecture.dual_rope)
    spec = ModelSpec(
        architecture=name,
        hidden_size=hidden,
        intermediate_size=config.integer(rule.dense_key),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_position=max_position,
        max_model_len=max_position,
        rms_eps=config.number("rms_norm_eps", 1e-6),
        hidden_act=_activation(config, architecture),
        tie_embeddings=config.flag("tie_word_embeddings"),
        attention_bias=bias if architecture.qkv_bias is None else architecture.qkv_bias,
        attention_out_bias=bias if architecture.qkv_bias is None else False,
        mlp_bias=config.flag("mlp_bias"),
        qk_norm=architecture.qk_norm,
        sliding_window=max(windows) or None,
        layer_windows=windows,
        rope=rope,
        local_rope=local_rope,
        dtype=_checkpoint_dtype(config),
        eos_token_ids=_token_ids(config, generation, "eos_token_id", vocab_size),
        bos_token_id=next(iter(_token_ids(config, generation, "bos_token_id", vocab_size)), None),
        attention_scale=head_dim**-0.5,
        state=state_spec(config, architecture.state, num_layers, hidden),
        attention_sinks=architecture.sinks,
        experts=experts(config, rule, num_layers) if architecture.experts else None,
        mxfp4=quantization is not None and quantization.method == "mxfp4",
        quantization=quantization,
        renames=architecture.renames,
        text_tower=architecture.text_tower,
        raw=MappingProxyType(dict(config.raw)),
    )
    if latent is not None:
        return _deepseek(config, spec, latent, architecture.deepseek)
    if architecture.llama4:
        return _llama4(config, spec)
    if architecture.granite:
        return _granite(config, spec)
    return _gemma(config, spec) if architecture.gemma else spec


def _head_dim(config: Reader, hidden: int, heads: int) -> int:
    if config.get("head_dim") is None and hidden % heads:
        raise config.error(
            "hidden_size", hidden, f"num_attention_heads={heads} must divide it, or add head_dim"
        )
    head_dim = config.integer("head_dim", hidden // heads, high=1 << 12)
    if head_dim % 2:
        raise config.error("head_dim", head_dim, "it must be even")
    return head_dim


def _deepseek(config: Reader, spec: ModelSpec, latent: LatentSpec, generation: int) -> ModelSpec:
    """Add latent attention and experts. Layers behind the last predict further tokens and are not loaded."""
    further = config.integer("num_nextn_predict_layers", 0, low=0, high=1 << 12)
    layers = range(spec.num_layers, spec.num_layers + further)
    return dataclasses.replace(
        spec,
        latent=latent,
        attention_scale=latent_scale(latent, spec.rope),
        experts=deepseek_experts(config, spec.num_layers, corrected=generation == 3),
        skipped=tuple(f"model.layers.{layer}." for layer in layers),
    )


def _speech(
    config: Reader, generation: Mapping[str, Any], name: str, architecture: Architecture
) -> ModelSpec:
    """Whisper's decoder, in names of its own: plain layer norms, learned positions, biases but for keys."""
    hidden, heads = config.integer("d_model"), config.integer("decoder_attention_heads", high=1 << 16)
    if hidden % heads or (hidden // heads) % 2:
        remedy = f"d_model={hidden} over it must be an even number"
        raise config.error("decoder_attention_heads", heads, remedy)
    if config.get("activation_function") != "gelu":
        raise config.error("activation_function", config.get("activation_function"), "only gelu is supported")
    num_layers = config.integer("decoder_layers", high=1 << 12)
    vocab_size = config.integer("vocab_size")
    positions = config.integer("max_target_positions", high=MAX_LENGTH)
    return ModelSpec(
        architecture=name,
        hidden_size=hidden,
        intermediate_size=config.integer("decoder_ffn_dim"),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        vocab_size=vocab_size,
        max_position=positions,
        max_model_len=positions,
        rms_eps=1e-5,  # of layer norms; transformers has no key for it
        hidden_act="gelu",
        tie_embeddings=config.flag("tie_word_embeddings", True),
        attention_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        qk_norm=False,
        sliding_window=None,
        layer_windows=(0,) * num_layers,
        rope=RopeSpec(rotary_dim=hidden // heads, original_max_position=positions),
        unrotated=tuple(range(num_layers)),
        dtype=_checkpoint_dtype(config),
        eos_token_ids=_token_ids(config, generation, "eos_token_id", vocab_size),
        bos_token_id=next(iter(_token_ids(config, generation, "bos_token_id", vocab_size)), None),
        attention_scale=(hidden // heads) ** -0.5,
        encoder=encoder_spec(config, hidden),
        start=decoder_start(config, generation, vocab_size),
        renames=architecture.renames,
        raw=MappingProxyType(dict(config.raw)),
    )


def _llama4(config: Reader, spec: ModelSpec) -> ModelSpec:
    """Add what Llama 4's attention has beyond Llama's."""
    tempered = config.flag("attn_temperature_tuning", True)
    temperature = config.number("attn_scale", 0.1), config.number("floor_scale", 8192)
    return dataclasses.replace(
        spec,
        chunked_windows=True,
        unrotated=unrotated(config, spec.num_layers),
        unit_heads=config.flag("use_qk_norm", True),
        temperature=temperature if tempered else None,
    )


def _granite(config: Reader, spec: ModelSpec) -> ModelSpec:
    """Add Granite's multipliers. Its experts stand beside a dense part that every layer has."""
    count = config.integer("num_local_experts", low=0)
    if count:
        raise config.error("num_local_experts", count, "only models without experts, 0, are supported")
    rotated = config.get("position_embedding_type") == "rope"
    return dataclasses.replace(
        spec,
        intermediate_size=config.integer("shared_intermediate_size"),
        attention_scale=config.number("attention_multiplier"),
        embedding_scale=config.number("embedding_multiplier", 1.0),
        residual_scale=config.number("residual_multiplier", 1.0),
        logits_scale=config.number("logits_scaling", 1.0),
        unrotated=() if rotated else tuple(range(spec.num_layers)),
    )


def _gemma(config: Reader, spec: ModelSpec) -> ModelSpec:
    """Add what Gemma's decoder has beyond Llama's."""
    if config.flag("use_bidirectional_attention"):
        raise config.error("use_bidirectional_attention", True, "only models that generate are supported")
    return dataclasses.replace(
        spec,
        attention_scale=config.number("query_pre_attn_scalar") ** -0.5,
        attn_soft_cap=config.optional_number("attn_logit_softcapping") or 0.0,
        final_soft_cap=config.optional_number("final_logit_softcapping") or 0.0,
        embedding_scale=spec.hidden_size**0.5,
        norm_offset=1.0,
        sandwich_norms=True,
    )


def _activation(config: Reader, architecture: Architecture) -> str:
    key = "hidden_activation" if architecture.gemma else "hidden_act"
    act = config.get(key, "silu")
    if not isinstance(act, str) or act not in ACTIVATIONS:
        raise config.error(key, act, f"supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[act]


def _checkpoint_dtype(config: Reader) -> str:
    """transformers 5 writes `dtype`, earlier ones `torch_dtype`; a file without either means float32."""
    value = config.get("dtype", config.get("torch_dtype", "float32"))
    try:
        dtype = parse_dtype(value)
    except ValueError:
        dtype = "auto"
    if dtype == "auto":
        raise config.error("dtype", value, "float32, bfloat16 or float16 is expected")
    return dtype


def _token_ids(config: Reader, generation: Mapping[str, Any], key: str, vocab_size: int) -> tuple[int, ...]:
    """Return the ids of both files without repeats, generation_config.json's first."""
    found: dict[int, None] = {}  # in order, and a file may hold millions
    for source in (generation, config.raw):
        value = source.get(key)
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab_size:
                raise config.error(key, value, f"token ids below vocab_size={vocab_size} are expected")
            found[token] = None
    return tuple(found)
