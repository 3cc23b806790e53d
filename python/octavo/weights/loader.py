"""A checkpoint's tensors -> a model's parameters, by name.

Module names are the checkpoint's names; a fused projection lists its parts (layers/linear.py). Before the
first byte is copied the two sides are compared as a whole: an error lists all that is wrong at once.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

import torch
from torch import nn

from octavo.errors import WeightsError
from octavo.hf.quantization import CACHE_SCALE
from octavo.hf_config import ModelSpec
from octavo.weights import mxfp4
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.device_copy import FileRows, copy_to_device
from octavo.weights.dummy import fill_randomly
from octavo.weights.safetensors_file import TensorInfo
from octavo.weights.source import Source

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_STORED = {**_DTYPES, "F8_E4M3": torch.float8_e4m3fn}  # the last for parameters of this dtype alone
_MAX_NAMED = 8  # names of each kind in one error message


def load_weights(
    model: nn.Module, folder: Path, spec: ModelSpec, *, load_format: str = "auto", seed: int = 0
) -> None:
    """Fill every parameter of a model from the safetensors files of a folder, converted to spec.dtype.

    load_format="dummy" fills it with random values instead. Raises WeightsError for a malformed file, and for
    tensors that are missing, left over, misshaped or not of a floating-point dtype; each is named.
    """
    if load_format == "dummy":
        fill_randomly(model, seed=seed)
        return
    with open_checkpoint(folder) as checkpoint:
        found = _found(checkpoint, spec)
        targets = _targets(model, found)
        _compare(checkpoint, targets, found)
        with torch.no_grad():
            _copy(checkpoint, targets, found)


def _copy(checkpoint: Checkpoint, targets: dict[str, Source], found: dict[str, TensorInfo]) -> None:
    """Copy what a device can take byte for byte in pieces, the rest a tensor at a time."""
    as_it_is: list[FileRows] = []
    for name, target in targets.items():
        rows, info = target.view, found[name]
        as_held = target.write is None and rows.dtype == _STORED.get(info.dtype)
        if as_held and not rows.is_cpu and rows.is_contiguous():
            as_it_is.append(FileRows(rows, checkpoint.files[info.name], info))
        else:
            _fill(target, _tensor(checkpoint, info))
    copy_to_device(as_it_is)


def _fill(target: Source, stored: torch.Tensor) -> None:
    if target.write is not None:
        target.write(stored)
        return
    if target.scales is None:
        target.view.copy_(stored.view(target.view.shape))
        return
    for view, blocks, scales in zip(target.view, stored, target.scales):  # an expert at a time
        view.copy_(mxfp4.unpack(blocks, scales).view(view.shape))


def _found(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, TensorInfo]:
    """Return what the checkpoint holds of the model, by the model's names."""
    found: dict[str, TensorInfo] = {}
    for stored, info in checkpoint.tensors.items():
        name = spec.name_of(stored)
        if name is None or CACHE_SCALE.fullmatch(name):
            continue
        if name in found:
            both = f"{found[name].name!r} and {stored!r}"
            raise WeightsError(f"the weights in {checkpoint.folder} hold {both}, which name the same tensor")
        found[name] = info
    return found


def _targets(model: nn.Module, found: Container[str]) -> dict[str, Source]:
    """Return the checkpoint name of every parameter or part of one. A tied head has none of its own."""
    modules = dict(model.named_modules())
    targets: dict[str, Source] = {}
    for name, parameter in model.named_parameters():
        path, _, kind = name.rpartition(".")
        module = modules[path]
        if hasattr(module, "spellings"):
            continue
        parts: Iterable[tuple[str, int]] | None = getattr(module, "parts", None)
        if parts is None:
            targets[name] = Source(parameter, tuple(parameter.shape))
            continue
        parent, first = path.rpartition(".")[0], 0
        for part, rows in parts:
            view = parameter.narrow(0, first, rows)
            targets[f"{parent}.{part}.{kind}"] = Source(view, tuple(view.shape))
            first += rows
    for path, module in modules.items():
        if hasattr(module, "spellings"):
            spellings: list[dict[str, Source]] = module.spellings(path)
            likeliest: dict[str, Source] = max(spellings, key=lambda names: _count(names, found))
            targets.update(likeliest)
    return targets


def _count(names: Iterable[str], found: Container[str]) -> int:
    return sum(name in found for name in names)


def _compare(checkpoint: Checkpoint, targets: dict[str, Source], found: dict[str, TensorInfo]) -> None:
    problems = []
    missing = [name for name in targets if name not in found]
    if missing:
        problems.append(f"missing: {_names(missing)}")
        if missing == ["lm_head.weight"]:
            problems.append('if the head is tied, set "tie_word_embeddings": true in config.json')
    extra = [info.name for name, info in found.items() if name not in targets]
    if extra:
        problems.append(f"not part of the model: {_names(extra)}")
    shared = [(found[name], target) for name, target in targets.items() if name in found]
    shapes = [(info, target, (target.shape, *target.also)) for info, target in shared]
    misshaped = [_misshaped(info, target) for info, target, fitting in shapes if info.shape not in fitting]
    if misshaped:
        problems.append(f"wrong shape: {_names(misshaped)}")
    mistyped = [(info, target) for info, target in shared if not _fits(info, target)]
    if mistyped:
        names = _names([f"{info.name} is {info.dtype}" for info, _ in mistyped])
        problems.append(f"dtype not one of {', '.join(_DTYPES)}: {names}")
        if any(_is_fp8(target) or info.dtype == "F8_E4M3" for info, target in mistyped):
            problems.append("F8_E4M3 are the linear layers that quantization_config says, and no others")
    if problems:
        raise WeightsError(
            f"the weights in {checkpoint.folder} do not fit config.json: {'; '.join(problems)}"
        )


def _fits(info: TensorInfo, target: Source) -> bool:
    if _is_fp8(target) and target.write is None:
        return info.dtype == "F8_E4M3"
    packed = target.scales is not None or target.view.dtype == torch.uint8
    return info.dtype == "U8" if packed else info.dtype in _DTYPES


def _is_fp8(target: Source) -> bool:
    return target.view.dtype == torch.float8_e4m3fn


def _misshaped(info: TensorInfo, target: Source) -> str:
    return f"{info.name} is {list(info.shape)}, expected {list(target.shape)}"


def _names(names: list[str]) -> str:
    rest = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _tensor(checkpoint: Checkpoint, info: TensorInfo) -> torch.Tensor:
    """Return a tensor that lies in the mapped file: nothing is read until it is copied."""
    data = checkpoint.files[info.name].data(info)
    return (
        torch.frombuffer(data, dtype=torch.uint8).view(_STORED.get(info.dtype, torch.uint8)).view(info.shape)
    )
