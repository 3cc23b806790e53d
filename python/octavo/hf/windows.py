"""Which layers of a model see how much of the past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.hf.reader import MAX_LENGTH, Reader


def layer_windows(config: Reader, rule: str, num_layers: int) -> tuple[int, ...]:
    """Return each layer's window in tokens, 0 for full attention.

    Rules: `none`; `all`, every layer slides; `switched`, so if use_sliding_window; `layered`, Qwen's, then
    `layer_types` says which layers slide, else those from max_window_layers on; `pattern`, Gemma's,
    `layer_types`, else all but every sliding_window_pattern-th. A missing sliding_window means full
    attention, but for Gemma. `chunked`, Llama 4's, is of chunks: `layer_types`, else all layers but those of
    `unrotated`.
    """
    if rule == "chunked":
        return _chunks(config, num_layers)
    if rule == "none" or (rule != "pattern" and config.get("sliding_window") is None):
        return (0,) * num_layers
    if rule in ("switched", "layered") and not config.flag("use_sliding_window"):
        return (0,) * num_layers
    if rule in ("all", "switched"):
        return (_window(config),) * num_layers
    slides = _slides(config, rule, num_layers)
    window = _window(config) if any(slides) else 0
    return tuple(window if slide else 0 for slide in slides)


def _window(config: Reader) -> int:
    return config.integer("sliding_window", high=MAX_LENGTH)


def _slides(config: Reader, rule: str, num_layers: int) -> tuple[bool, ...]:
    if config.get("layer_types") is not None:
        return layer_types(config, num_layers, {"sliding_attention": True, "full_attention": False})
    if rule == "pattern":
        every = config.integer("sliding_window_pattern")
        return tuple((layer + 1) % every != 0 for layer in range(num_layers))
    first = config.integer("max_window_layers", 28, low=0)
    return tuple(layer >= first for layer in range(num_layers))


def _chunks(config: Reader, num_layers: int) -> tuple[int, ...]:
    if config.get("layer_types") is not None:
        chunked = layer_types(config, num_layers, {"chunked_attention": True, "full_attention": False})
    else:
        whole = unrotated(config, num_layers)
        chunked = tuple(layer not in whole for layer in range(num_layers))
    size = config.integer("attention_chunk_size", high=MAX_LENGTH) if any(chunked) else 0
    return tuple(size if chunk else 0 for chunk in chunked)


def unrotated(config: Reader, num_layers: int) -> tuple[int, ...]:
    """Return the layers without rotary positions: a 0 in `no_rope_layers`, else every
    no_rope_layer_interval-th.
    """
    marks = config.get("no_rope_layers") or None
    if marks is None:
        every = config.integer("no_rope_layer_interval", 4)
        return tuple(layer for layer in range(num_layers) if (layer + 1) % every == 0)
    if not isinstance(marks, list) or len(marks) < num_layers or any(mark not in (0, 1) for mark in marks):
        remedy = f"a list of {num_layers} (num_hidden_layers) zeros and ones is expected"
        raise config.error("no_rope_layers", marks, remedy)
    return tuple(layer for layer in range(num_layers) if not marks[layer])


def layer_types(config: Reader, num_layers: int, known: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what `known` says of each layer's entry in `layer_types`."""
    types = config.get("layer_types")
    names = types if isinstance(types, list) else []
    if len(names) != num_layers or any(name not in list(known) for name in names):
        remedy = f"a list of {num_layers} (num_hidden_layers) names out of {', '.join(known)} is expected"
        raise config.error("layer_types", types, remedy)
    return tuple(known[name] for name in names)
