"""Recurrent layers in config.json: which layers keep a state instead of keys, and of what shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo.hf.reader import Reader
from octavo.hf.windows import layer_types

# JSON has no infinity: Python's spelling, and that of transformers 5.
_NO_LIMITS = ([0.0, math.inf], [0.0, {"__float__": "Infinity"}])
_LINE = 64  # bytes; each part of a state begins on a cache line
_SCAN_BYTES = 4  # a sum over all tokens needs float32, also in a 16-bit model


@dataclass(frozen=True, kw_only=True)
class StateSpec:
    """The Mamba2 layers of a model: `heads` heads of `head_dim` values, each with a state of `size`."""

    layers: tuple[int, ...]
    heads: int
    head_dim: int
    groups: int  # of heads that share B and C, and one norm
    size: int
    taps: int  # of the convolution
    conv_bias: bool
    proj_bias: bool

    @property
    def inner(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_dim

    @property
    def conv_size(self) -> int:
        """Channels of the convolution: the values, B and C."""
        return self.inner + 2 * self.groups * self.size

    @property
    def projected(self) -> int:
        """Width of the input projection: the gate, the channels and one step size a head."""
        return self.inner + self.conv_size + self.heads

    def conv_bytes(self, dtype_bytes: int) -> int:
        """The last inputs of the convolution, in the model's dtype."""
        return _lines((self.taps - 1) * self.conv_size * dtype_bytes)

    @property
    def scan_bytes(self) -> int:
        """The state of every head, in float32 as transformers keeps it."""
        return _lines(self.inner * self.size * _SCAN_BYTES)

    def layer_bytes(self, dtype_bytes: int) -> int:
        """One layer's part of a state block."""
        return self.conv_bytes(dtype_bytes) + self.scan_bytes

    def layer_parameters(self, hidden_size: int) -> int:
        """Elements of one mixer's weights."""
        projections = hidden_size * (self.projected + self.inner)
        biases = (self.projected + hidden_size) * self.proj_bias + self.conv_size * self.conv_bias
        return projections + biases + self.conv_size * self.taps + 3 * self.heads + self.inner


def state_spec(config: Reader, rule: str, num_layers: int, hidden_size: int) -> StateSpec | None:
    """Return the recurrent layers of a model, None if it has none. Raises ModelError for what cannot be.

    Rules: `none`; `bamba`, attn_layer_indices names the others; `granite`, layer_types names each.
    """
    if rule == "none":
        return None
    heads, inner = config.integer("mamba_n_heads"), config.integer("mamba_expand") * hidden_size
    if inner % heads:
        remedy = f"it must divide mamba_expand * hidden_size = {inner}"
        raise config.error("mamba_n_heads", heads, remedy)
    head_dim = config.get("mamba_d_head", "auto")
    if head_dim not in ("auto", inner // heads):
        remedy = f'"auto" or mamba_expand * hidden_size / mamba_n_heads = {inner // heads} is expected'
        raise config.error("mamba_d_head", head_dim, remedy)
    groups = config.integer("mamba_n_groups")
    if heads % groups:
        raise config.error("mamba_n_groups", groups, f"it must divide mamba_n_heads={heads}")
    _check_time_steps(config)
    return StateSpec(
        layers=_LAYERS[rule](config, num_layers),
        heads=heads,
        head_dim=inner // heads,
        groups=groups,
        size=config.integer("mamba_d_state", high=1024),
        taps=config.integer("mamba_d_conv", low=2, high=8),
        conv_bias=config.flag("mamba_conv_bias", True),
        proj_bias=config.flag("mamba_proj_bias"),
    )


def _all_but_indices(config: Reader, num_layers: int) -> tuple[int, ...]:
    """Bamba's spelling. Both kinds are needed: a model of one is another model."""
    attending = config.get("attn_layer_indices")
    found = set(attending) if isinstance(attending, list) and all(_is_index(i) for i in attending) else set()
    if not found or max(found) >= num_layers or len(found) == num_layers:
        remedy = f"a list of some of the layers 0 to {num_layers - 1} is expected"
        raise config.error("attn_layer_indices", attending, remedy)
    return tuple(layer for layer in range(num_layers) if layer not in found)


def _by_types(config: Reader, num_layers: int) -> tuple[int, ...]:
    """Granite's spelling, in the names of transformers 5 and those before."""
    known = {"linear_attention": True, "mamba": True, "full_attention": False, "attention": False}
    recurrent = layer_types(config, num_layers, known)
    if len(set(recurrent)) == 1:
        remedy = "recurrent layers and layers with attention are expected"
        raise config.error("layer_types", config.get("layer_types"), remedy)
    return tuple(layer for layer, holds in enumerate(recurrent) if holds)


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_time_steps(config: Reader) -> None:
    """transformers clips step sizes in a prompt but not in what follows it: only no clipping is one model."""
    limit = config.get("time_step_limit", _NO_LIMITS[0])
    if limit not in _NO_LIMITS:
        raise config.error("time_step_limit", limit, "only [0.0, Infinity], no limit, is supported")


_LAYERS = {"bamba": _all_but_indices, "granite": _by_types}


def _lines(size: int) -> int:
    return -(-size // _LINE) * _LINE
