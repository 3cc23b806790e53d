"""The weights of a folder: model.safetensors, or shards that an index lists. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import WeightsError, file_failure
from octavo.hf.reader import read_json
from octavo.weights.safetensors_file import SafetensorsFile, TensorInfo

INDEX_NAME = "model.safetensors.index.json"

# Buffers that old checkpoints carry and every model computes for itself.
_BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


@dataclass(frozen=True)
class Checkpoint:
    """Every tensor of a folder and the file it lies in. Close it, or use it as a context manager."""

    folder: Path
    tensors: Mapping[str, TensorInfo]
    files: Mapping[str, SafetensorsFile]  # by tensor name
    stack: ExitStack

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.stack.close()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a folder's safetensors files and check their headers.

    Raises WeightsError if there are none, a shard is missing, or the index and the shards disagree.
    """
    try:
        return _open(folder)
    except OSError as error:
        raise WeightsError(file_failure(error.filename or folder, error)) from error


def _open(folder: Path) -> Checkpoint:
    index = read_json(folder / INDEX_NAME)
    placed = None if index is None else _weight_map(folder, index)
    paths = _paths(folder) if placed is None else [folder / name for name in sorted(set(placed.values()))]
    for path in paths:
        if not path.is_file():
            raise WeightsError(f"{path} is missing: {INDEX_NAME} names it, download it again")
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, SafetensorsFile] = {}
    with ExitStack() as stack:
        for path in paths:
            file = stack.enter_context(SafetensorsFile(path))
            for name, info in file.tensors.items():
                if name.endswith(_BUFFERS):
                    continue
                if name in files:
                    raise WeightsError(f"tensor {name!r} is in both {files[name].path} and {path}")
                tensors[name], files[name] = info, file
        if placed is not None:
            _check_index(folder, placed, files)
        return Checkpoint(folder, tensors, files, stack.pop_all())


def has_weights(folder: Path) -> bool:
    """Whether a folder holds safetensors files or an index of them."""
    return (folder / INDEX_NAME).is_file() or any(folder.glob("*.safetensors"))


def _paths(folder: Path) -> list[Path]:
    single = folder / "model.safetensors"
    found = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not found:
        other = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"{other[0]} is a pickle, which is never opened: convert it to safetensors" if other else ""
        remedy = hint or "download it, or use load_format='dummy' for random weights"
        raise WeightsError(f"{folder} has no *.safetensors file: {remedy}")
    return found


def _weight_map(folder: Path, index: Mapping[str, object]) -> dict[str, str]:
    placed = index.get("weight_map")
    where = f"{folder / INDEX_NAME}: weight_map"
    if not isinstance(placed, dict) or not placed:
        raise WeightsError(f"{where}={placed!r:.80} is not an object of names and files")
    for tensor, name in placed.items():
        # A file name with a separator could point out of the folder.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            remedy = "the name of a .safetensors file beside the index is expected"
            raise WeightsError(f"{where}[{tensor!r}]={name!r} is not valid: {remedy}")
    return placed


def _check_index(folder: Path, placed: Mapping[str, str], files: Mapping[str, SafetensorsFile]) -> None:
    for tensor, name in placed.items():
        if tensor.endswith(_BUFFERS):
            continue
        if tensor not in files or files[tensor].path.name != name:
            raise WeightsError(f"{folder / INDEX_NAME} places {tensor!r} in {name}, which does not hold it")
