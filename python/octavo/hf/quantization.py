"""Quantized weights: what config.json's quantization_config, or quantization="fp8", says about them.

METHODS is the registry: one line for each way to write a quantized checkpoint. A method reads its object and
answers with a Quantization; the linear layers of its scheme stand in layers/quantized.py. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import did_you_mean, invalid
from octavo.hf.reader import Reader

KEY = "quantization_config"
SCALE_BYTES = 4  # float32
SCALE_NAMES = ("weight_scale", "weight_scale_inv", "input_scale", "activation_scale")
# Scales of a KV cache in fp8 are named after the attention, its projections, or vLLM's module inside it; `kv`
# is one number for both. Those of queries and weights are for products in fp8, which attention here has not.
CACHE_SCALE = re.compile(
    r"(?P<path>.+?)\.(?:(?:attn\.|(?:[kv]|qkv)_proj\.)?(?P<kind>k|v|kv|q|prob|prob_output)_scale"
    r"|(?P<part>[kv])_proj\.output_scale)"
)
MAX_PATTERN = 256  # characters of a pattern in a list of exceptions
MAX_REPEATS = 3  # in one pattern: what it costs to match grows by a power for each
_MAX_NAME = 512  # characters of a name that patterns are tried on


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How the linear layers of a model are held."""

    method: str  # of METHODS
    scheme: str | None  # of layers/quantized.py; None: linear layers are as ever
    stored: bool  # the checkpoint holds them so; otherwise they are quantized as they are loaded
    static: bool = False  # inputs have one scale, from the checkpoint; otherwise one of each token
    ignored: tuple[str, ...] = ()  # modules that stay in the model's dtype; re:... is a pattern

    def converts(self, module: str) -> bool:
        """Whether a linear layer, by its name in the checkpoint, is quantized. Vocabularies never are."""
        last = module.rpartition(".")[2]
        if self.scheme is None or last == "lm_head" or "embed" in last:
            return False
        return not any(_matches(entry, module) for entry in self.ignored)

    def linear_bytes(self, rows: int, columns: int) -> int:
        """A quantized weight: a byte a number, a scale a row, and its input's."""
        return rows * columns + rows * SCALE_BYTES + SCALE_BYTES * self.static


def read_quantization(
    config: Reader, wanted: str | None = None, *, never: str | None = None, mxfp4: bool = False
) -> Quantization | None:
    """Return how a model's linear layers are held; None: in its dtype.

    `wanted` is the user's choice, `never`: what kind of models this is one of, if their linear layers cannot
    be quantized yet, `mxfp4`: whether its experts may be.
    Raises ModelError for what the checkpoint says and Octavo cannot do, ValueError for a wrong choice.
    """
    found = _of_checkpoint(config, mxfp4=mxfp4) if config.get(KEY) is not None else None
    if wanted is not None:
        found = _chosen(wanted, found)
    if found is not None and found.scheme is not None and never is not None:
        remedy = f"{never} run in float32, bfloat16 and float16, use such a checkpoint"
        if found.stored:
            raise config.error(f"{KEY}.quant_method", found.method, remedy)
        raise invalid("quantization", wanted, f"leave it out: {remedy}")
    return found


def _of_checkpoint(config: Reader, *, mxfp4: bool) -> Quantization:
    said = _Object(config, KEY, config.get(KEY))
    known = [name for name in METHODS if name != "mxfp4" or mxfp4]
    name = said.fields.get("quant_method")
    if not isinstance(name, str) or name not in known:
        hint = did_you_mean(name, known) if isinstance(name, str) else ""
        remedy = f"supported are {', '.join(known)}{hint}; use such a checkpoint, or one in 16 or 32 bits"
        raise said.error("quant_method", remedy)
    return METHODS[name].read(said)


def _chosen(wanted: str, found: Quantization | None) -> Quantization:
    """What is stored is what it is; the choice can only repeat it, or quantize what is not."""
    if found is not None:
        if found.method != wanted:
            raise invalid("quantization", wanted, f"leave it out: the checkpoint is {found.method}")
        return found
    online = METHODS[wanted].online if wanted in METHODS else None
    if online is None:
        names = ", ".join(name for name, method in METHODS.items() if method.online is not None)
        remedy = f"a checkpoint without {KEY} can be loaded as {names}; or leave it out"
        raise invalid("quantization", wanted, remedy)
    return online


class _Object:
    """An object inside config.json, whose errors name the whole way to a field."""

    def __init__(self, config: Reader, path: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise config.error(path, value, "an object is expected")
        self.config = config
        self.path = path
        self.fields: Mapping[str, Any] = value

    def error(self, key: str, remedy: str) -> Exception:
        return self.config.error(f"{self.path}.{key}", self.fields.get(key), remedy)

    def inner(self, key: str) -> _Object:
        return _Object(self.config, f"{self.path}.{key}", self.fields.get(key))

    def one_of(self, key: str, choices: Sequence[Any], default: Any = None) -> Any:
        """A missing key and null are the default."""
        value = self.fields.get(key)
        value = default if value is None else value
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            supported = " or ".join("nothing" if choice is None else repr(choice) for choice in choices)
            raise self.error(key, f"{supported} is supported, use a checkpoint that has it")
        return value

    def names(self, *keys: str) -> tuple[str, ...]:
        """The exceptions under whichever of these keys there is."""
        found: list[str] = []
        for key in keys:
            value = self.fields.get(key)
            entries = [] if value is None else value
            if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
                raise self.error(key, "a list of module names is expected")
            for entry in entries:
                if entry.startswith("re:") and not _is_harmless(entry[3:]):
                    remedy = f"{entry!r} is no pattern of up to {MAX_REPEATS} repetitions, none of a group"
                    raise self.error(key, remedy)
            found += entries
        return tuple(found)


def _read_fp8(said: _Object) -> Quantization:
    """FP8 as transformers and vLLM write it: a scale for each tensor, or for each row of it."""
    if said.fields.get("weight_block_size") is not None:
        raise said.error(
            "weight_block_size",
            "one scale a tensor or a row is supported, not blocks: use such a checkpoint, or the 16-bit one "
            'with quantization="fp8"',
        )
    scheme = said.one_of("activation_scheme", ("dynamic", "static"), "dynamic")
    if said.fields.get("kv_cache_scheme") != "static":  # one number a layer, beside the weights
        said.one_of("kv_cache_scheme", (None,))
    ignored = said.names("modules_to_not_convert", "ignored_layers")
    return Quantization(method="fp8", scheme="fp8", stored=True, static=scheme == "static", ignored=ignored)


def _read_compressed_tensors(said: _Object) -> Quantization:
    """The float-quantized format of compressed-tensors: one group of all linear layers, 8 bits each side."""
    said.one_of("format", ("float-quantized",))
    if said.fields.get("kv_cache_scheme"):
        _check_cache_scheme(said.inner("kv_cache_scheme"))
    for key in ("sparsity_config", "transform_config"):
        if said.fields.get(key) != {}:  # some writers leave an empty object where there is none
            said.one_of(key, (None,))
    groups = said.inner("config_groups")
    if len(groups.fields) != 1:
        raise said.error("config_groups", "one group for all linear layers is expected")
    group = groups.inner(next(iter(groups.fields)))
    group.one_of("targets", (["Linear"],))
    weights, inputs = group.inner("weights"), group.inner("input_activations")
    for side in (weights, inputs):
        side.one_of("num_bits", (8,))
        side.one_of("type", ("float",))
        side.one_of("symmetric", (True,), True)
    weights.one_of("strategy", ("channel", "tensor"))
    weights.one_of("dynamic", (False,), False)
    dynamic = inputs.one_of("dynamic", (True, False), False)
    inputs.one_of("strategy", ("token",) if dynamic else ("tensor",))
    return Quantization(
        method="compressed-tensors",
        scheme="fp8",
        stored=True,
        static=not dynamic,
        ignored=said.names("ignore"),
    )


def _check_cache_scheme(scheme: _Object) -> None:
    """Keys and values have a scale a layer in the checkpoint, for whoever keeps them in fp8."""
    scheme.one_of("num_bits", (8,))
    scheme.one_of("type", ("float",))
    scheme.one_of("strategy", ("tensor",))
    scheme.one_of("dynamic", (False,), False)
    scheme.one_of("symmetric", (True,), True)


def _read_mxfp4(said: _Object) -> Quantization:
    """GPT-OSS's experts, which weights/mxfp4.py unpacks as they are loaded. Nothing else is quantized."""
    return Quantization(method="mxfp4", scheme=None, stored=True)


@dataclass(frozen=True)
class Method:
    """One way to write a quantized checkpoint."""

    read: Callable[[_Object], Quantization]
    online: Quantization | None = None  # what this name means for a checkpoint that is not quantized


METHODS: Mapping[str, Method] = {
    "fp8": Method(_read_fp8, Quantization(method="fp8", scheme="fp8", stored=False)),
    "compressed-tensors": Method(_read_compressed_tensors),
    "mxfp4": Method(_read_mxfp4),
}


def _matches(entry: str, module: str) -> bool:
    """An exception is a module's name, or where it begins or ends at a dot. A checkpoint that holds several
    models says more of the name than the module has."""
    if entry.startswith("re:"):
        return len(module) <= _MAX_NAME and re.match(entry[3:], module) is not None
    within = f"{module}.".startswith(f"{entry}.") or f".{module}".endswith(f".{entry}")
    return within or entry.endswith(f".{module}")


def _is_harmless(pattern: str) -> bool:
    """A file may not choose how long its patterns take: nested repetitions can take for ever."""
    repeats = len(re.findall(r"[*+?{]", pattern))
    if len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or re.search(r"\)[*+?{]", pattern):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
