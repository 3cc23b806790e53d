"""Checkpoints in FP8, written from the tiny models, and the same computation in float32 by transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FP8_MAX = 448.0
STATIC_SCALE = 0.02  # inputs of the tiny models reach about 9: they fit, and a coarse scale would show

_SIDE = {"num_bits": 8, "type": "float", "symmetric": True}


def compressed(strategy: str, *, static: bool = False, **changes: Any) -> dict[str, Any]:
    """A quantization_config of compressed-tensors."""
    inputs = {"dynamic": not static, "strategy": "tensor" if static else "token"}
    group = {
        "targets": ["Linear"],
        "weights": {**_SIDE, "dynamic": False, "strategy": strategy},
        "input_activations": {**_SIDE, **inputs},
        "output_activations": None,
    }
    whole = {"quant_method": "compressed-tensors", "format": "float-quantized", "kv_cache_scheme": None}
    return {**whole, "config_groups": {"group_0": group}, "ignore": ["lm_head"], **changes}


# name: (quantization_config, names of the scales, one scale a row, inputs have a scale)
FORMATS: dict[str, tuple[dict[str, Any], tuple[str, str], bool, bool]] = {
    "fp8": ({"quant_method": "fp8"}, ("weight_scale", "input_scale"), False, False),
    "fp8-static": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        ("weight_scale", "input_scale"),
        False,
        True,
    ),
    "fp8-transformers": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": None},
        ("weight_scale_inv", "activation_scale"),
        False,
        False,
    ),
    "compressed-channel": (compressed("channel"), ("weight_scale", "input_scale"), True, False),
    "compressed-tensor": (compressed("tensor"), ("weight_scale", "input_scale"), False, False),
    "compressed-static": (
        compressed("tensor", static=True),
        ("weight_scale", "input_scale"),
        False,
        True,
    ),
}


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def save_fp8(source: Path, target: Path, form: str, *, ignored: tuple[str, ...] = ()) -> Path:
    """Copy a tiny model's folder with its linear layers in one of FORMATS, but for those `ignored`."""
    said, (weight_scale, input_scale), by_row, static = FORMATS[form]
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    for name in [name for name in tensors if is_linear(name)]:
        module = name.removesuffix(".weight")
        if module in ignored:
            continue
        weight = tensors[name].double()
        scale = weight.abs().amax(1, keepdim=True) if by_row else weight.abs().amax()
        scale = scale.float() * (1 / FP8_MAX)
        tensors[name] = (weight / scale).float().to(torch.float8_e4m3fn)
        tensors[f"{module}.{weight_scale}"] = scale
        if static:
            tensors[f"{module}.{input_scale}"] = torch.tensor(STATIC_SCALE)
    save_file(tensors, target / "model.safetensors")
    key = "ignore" if said["quant_method"] == "compressed-tensors" else "modules_to_not_convert"
    set_config(target, {**said, key: ["lm_head", *ignored]})
    return target


def set_config(folder: Path, quantization: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))


def reference_of(plain: Path, quantized: Path, form: str) -> Any:
    """Return transformers' model in float32 whose weights are those of `quantized`, dequantized, and whose
    linear layers round their inputs to FP8 as the format says.
    """
    import transformers

    _, (weight_scale, _), _, static = FORMATS[form]
    model = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    tensors = load_file(quantized / "model.safetensors")
    for path, module in model.named_modules():
        scale = tensors.get(f"{path}.{weight_scale}")
        if scale is not None:
            module.weight.data = tensors[f"{path}.weight"].float() * scale
            module.register_forward_pre_hook(lambda _, inputs: (round_input(inputs[0], static=static),))
    return model


def round_input(x: torch.Tensor, *, static: bool) -> torch.Tensor:
    """Return what FP8 leaves of x, with STATIC_SCALE or a scale for each token."""
    scale = torch.tensor(STATIC_SCALE) if static else x.abs().amax(-1, keepdim=True) * (1 / FP8_MAX)
    return (x / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float() * scale
