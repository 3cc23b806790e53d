"""Rotary scaling in config.json, in both spellings."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import did_you_mean
from octavo.hf.reader import MAX_LENGTH, Reader

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


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


def ropes(
    config: Reader, head_dim: int, max_position: int, *, dual: bool
) -> tuple[RopeSpec, RopeSpec | None]:
    """Return the rotary embedding of a model and, with `dual`, that of its layers with a window.

    Two embeddings are spelt as `rope_parameters` of each layer type (transformers 5), or as `rope_theta` and
    `rope_scaling` for the full layers and `rope_local_base_freq` for the others (before).
    """
    key = "rope_parameters" if config.get("rope_parameters") is not None else "rope_scaling"
    value = config.get(key, {})
    each = dual and key == "rope_parameters"
    if not isinstance(value, dict) or any(isinstance(item, dict) is not each for item in value.values()):
        shape = "an object for each layer type" if each else "one flat object for all layers"
        raise config.error(key, value, f"{shape} is expected")
    full, full_key = (value.get("full_attention", {}), f"{key}.full_attention") if each else (value, key)
    rope = _rope(config, Reader(full, config.path), full_key, head_dim, max_position)
    if not dual:
        return rope, None
    theta = {"rope_theta": config.number("rope_local_base_freq", 10000.0)}
    local = Reader(value.get("sliding_attention", {}) if each else {}, config.path, theta)
    return rope, _rope(config, local, f"{key}.sliding_attention", head_dim, max_position)


def _rope(config: Reader, rope: Reader, key: str, head_dim: int, max_position: int) -> RopeSpec:
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
    original = rope.integer("original_max_position_embeddings", original, high=MAX_LENGTH)
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


def _rope_factor(rope: Reader, kind: str, max_position: int, original: int) -> float:
    """A scaling below 1 would shrink the context; yarn may leave the factor to the two lengths."""
    factor = rope.number("factor", max_position / original if kind == "yarn" else None)
    most = MAX_LENGTH // max(max_position, original)
    if not 1 <= factor <= most:
        remedy = f"a number from 1 to {most} is expected, so that the context has at most {MAX_LENGTH} tokens"
        raise rope.error("factor", factor, remedy)
    return factor


def _mscale(rope: Reader, key: str) -> float | None:
    """Zero means unset: the paper's attention factor is then used."""
    return rope.optional_number(key) if rope.get(key) else None
