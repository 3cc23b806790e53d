"""Scales of a KV cache in fp8, which some checkpoints bring: a number for the keys and one for the values of
each layer, that they are divided by before they are stored.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from octavo.errors import WeightsError
from octavo.hf.quantization import CACHE_SCALE
from octavo.hf_config import ModelSpec
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.safetensors_file import TensorInfo

logger = logging.getLogger("octavo")

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class KvScales(NamedTuple):
    """What the keys and values of a layer are divided by before a cache in fp8 takes them."""

    k: float = 1.0
    v: float = 1.0


def load_kv_scales(model: nn.Module, folder: Path, spec: ModelSpec) -> dict[int, KvScales]:
    """Return the scales of each layer that a checkpoint has them for; {} if for none, which is logged.

    Layers that attend to an encoder's output may do without. Raises WeightsError for a scale that is no
    number above 0 or of no layer, and where only some layers have theirs.
    """
    modules = dict(model.named_modules())
    found: dict[int, dict[str, float]] = {}
    with open_checkpoint(folder) as checkpoint:
        for stored, info in checkpoint.tensors.items():
            name = spec.name_of(stored)
            match = None if name is None else CACHE_SCALE.fullmatch(name)
            kind = None if match is None else match["part"] or match["kind"]
            if match is None or kind not in ("k", "v", "kv"):
                continue
            layer = getattr(modules.get(match["path"]), "layer", None)
            if not isinstance(layer, int):
                raise WeightsError(f"{stored} in {folder} is the scale of no layer of the model")
            value = _number(checkpoint, info)
            found.setdefault(layer, {}).update(dict.fromkeys(kind, value))
    if not found:
        logger.warning("keys and values are stored in fp8 with scale 1: the checkpoint has none for them")
        return {}
    lacking = [layer for layer in spec.attention_layers if len(found.get(layer, ())) < 2]
    lacking += [layer for layer in found if len(found[layer]) < 2 and layer not in lacking]
    if lacking:
        layers = ", ".join(map(str, lacking))
        raise WeightsError(
            f"the weights in {folder} scale keys and values of some layers, but not both of layers "
            f"{layers}: use a complete checkpoint, or kv_cache_dtype='auto'"
        )
    return {layer: KvScales(**parts) for layer, parts in found.items()}


def _number(checkpoint: Checkpoint, info: TensorInfo) -> float:
    dtype = _DTYPES.get(info.dtype)
    if dtype is None or info.num_elements != 1:
        have = f"{info.dtype} {list(info.shape)}"
        raise WeightsError(f"{info.name} is {have}: one floating-point number a layer is supported")
    value = float(torch.frombuffer(checkpoint.files[info.name].data(info), dtype=dtype)[0])
    if not (math.isfinite(value) and value > 0):
        remedy = "a finite number above 0 is expected, download it again"
        raise WeightsError(f"{info.name} is {value:g}: {remedy}")
    return value
