"""Rotary position embedding: the table of cosines and sines, for every kind of context scaling.

Sources: RoFormer (Su et al., 2021); linear interpolation (Chen et al., 2023); dynamic NTK (bloc97, emozilla,
2023); YaRN (Peng et al., 2023, with DeepSeek's mscale); Llama 3.1's smoothing (Dubey et al., 2024).
"""

from __future__ import annotations

import math

import torch

from octavo.hf_config import ModelSpec, RopeSpec


def layer_tables(spec: ModelSpec) -> list[torch.Tensor | None]:
    """Return the table of each layer, None for one that does not rotate. Layers that rotate alike share."""
    tables: dict[RopeSpec | None, torch.Tensor | None] = {None: None}
    for layer in range(spec.num_layers):
        rope = spec.rope_of(layer)
        if rope not in tables:
            tables[rope] = rotary_table(spec, rope)
    return [tables[spec.rope_of(layer)] for layer in range(spec.num_layers)]


def rotary_table(spec: ModelSpec, rope: RopeSpec | None = None) -> torch.Tensor:
    """Return [max_model_len, R] float32: R/2 cosines, then R/2 sines, of every position; `rope` is spec.rope
    unless given.

    Dynamic NTK stretches with the length of a sequence. Keys in a cache cannot be turned again, so the table
    is made once for max_model_len: exact while max_model_len <= max_position; above it, short sequences see
    the stretch of the longest.
    """
    inverse, scale = frequencies(rope or spec.rope, spec.max_model_len)
    angles = torch.outer(torch.arange(spec.max_model_len, dtype=torch.float32), inverse)
    return torch.cat((angles.cos(), angles.sin()), dim=-1).mul_(scale)


def frequencies(rope: RopeSpec, length: int) -> tuple[torch.Tensor, float]:
    """Return angle per position of each pair, [R/2] float32, and the factor on cosines and sines."""
    if rope.kind == "linear":
        return _plain(rope, rope.theta) / rope.factor, 1.0
    if rope.kind == "dynamic":
        return _dynamic(rope, length), 1.0
    if rope.kind == "llama3":
        return _llama3(rope), 1.0
    if rope.kind == "yarn":
        return _yarn(rope), _yarn_attention(rope)
    return _plain(rope, rope.theta), 1.0


def _plain(rope: RopeSpec, theta: float) -> torch.Tensor:
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    return 1.0 / theta**exponents


def _dynamic(rope: RopeSpec, length: int) -> torch.Tensor:
    """Raise theta: the lowest frequency is interpolated by the whole stretch, the highest not at all."""
    stretch = max(length, rope.original_max_position) / rope.original_max_position
    growth = rope.factor * stretch - (rope.factor - 1)
    return _plain(rope, rope.theta * growth ** (rope.rotary_dim / (rope.rotary_dim - 2)))


def _llama3(rope: RopeSpec) -> torch.Tensor:
    """Interpolate waves longer than the original context, keep short ones, blend those between."""
    plain = _plain(rope, rope.theta)
    turns = rope.original_max_position * plain / (2 * math.pi)  # full turns within the original context
    low, high = rope.low_freq_factor, rope.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * plain + (1 - keep) * (plain / rope.factor)


def _yarn(rope: RopeSpec) -> torch.Tensor:
    """Interpolate pairs that turn less than beta_slow times in the original context, keep those that turn
    more than beta_fast times, and ramp linearly over the pairs between (YaRN, section 3.2).
    """
    plain = _plain(rope, rope.theta)
    dim = rope.rotary_dim

    def pair_that_turns(times: float) -> float:
        wave = rope.original_max_position / (times * 2 * math.pi)
        return dim * math.log(wave) / (2 * math.log(rope.theta))

    first, last = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001  # a ramp of no width would divide by zero
    pairs = torch.arange(dim // 2, dtype=torch.float32)
    interpolated = ((pairs - first) / (last - first)).clamp(0, 1)
    return interpolated * (plain / rope.factor) + (1 - interpolated) * plain


def _yarn_attention(rope: RopeSpec) -> float:
    """Longer contexts flatten attention; scaling q and k by this makes up for it (YaRN, section 3.4)."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
