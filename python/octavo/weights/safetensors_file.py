"""One safetensors file, read through mmap.

The format: 8 bytes with the header's length (little endian), the header (a JSON object: tensor name -> dtype,
shape, [begin, end) in the data), the data. A checkpoint comes from strangers, so every number is checked
before it is used, and nothing in it is ever executed. Reading a header needs no torch.
Source: the format section of the safetensors repository.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import WeightsError, file_failure, shown

MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 8

# Bits of an element, for every dtype of the format, so that a file with an unusual extra tensor still opens.
DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `begin` and `end` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


class SafetensorsFile:
    """A file's checked header, and its bytes on demand. Use as a context manager, or close().

    Raises WeightsError, naming the file and the tensor, if the file is truncated or its header is malformed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        try:
            self._file = open(path, "rb")
        except OSError as error:
            raise WeightsError(file_failure(path, error)) from error
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self.tensors = _parse(path, self._read_header(), self._size)
        except OSError as error:
            self._file.close()
            raise WeightsError(file_failure(path, error)) from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The bytes of tensors still in use stay mapped until the last of them is dropped."""
        self._map = None
        self._file.close()

    def data(self, info: TensorInfo) -> memoryview:
        """Return the bytes of a tensor, mapped, not read: shape [info.end - info.begin], dtype uint8.

        Raises WeightsError if the file cannot be mapped or has shrunk. One that shrinks later, or a disk that
        fails under the map, ends the process: nothing in a process can stop that.
        """
        if self._map is None:
            self._map = self._mapped()
        return memoryview(self._map)[info.begin : info.end]

    def _mapped(self) -> mmap.mmap:
        try:
            mapped = mmap.mmap(self._file.fileno(), self._size, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise WeightsError(file_failure(self.path, error)) from error
        except ValueError as error:
            raise WeightsError(f"{self.path} shrank while it was read: download it again") from error
        if hasattr(mmap, "MADV_WILLNEED"):
            with contextlib.suppress(OSError):  # a hint, and no more
                mapped.madvise(mmap.MADV_WILLNEED)
        return mapped

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer from `offset` in the file; any thread may. Raises WeightsError where it cannot."""
        filled = 0
        while filled < len(buffer):
            try:
                count = os.preadv(self._file.fileno(), [buffer[filled:]], offset + filled)
            except OSError as error:
                raise WeightsError(file_failure(self.path, error)) from error
            if count == 0:
                raise WeightsError(f"{self.path} ends at byte {offset + filled}: it shrank while it was read")
            filled += count

    def _read_header(self) -> bytes:
        if self._size < 8:
            raise WeightsError(f"{self.path} has only {self._size} bytes: download it again")
        first = self._file.read(8)
        if len(first) < 8:
            raise WeightsError(f"{self.path} shrank while it was read: download it again")
        (length,) = struct.unpack("<Q", first)
        if length > MAX_HEADER_BYTES:
            remedy = f"at most {MAX_HEADER_BYTES} are allowed, so this is no safetensors file"
            raise WeightsError(f"{self.path}: the header claims {length} bytes: {remedy}")
        if length + 8 > self._size:
            remedy = "the file is truncated, download it again"
            raise WeightsError(f"{self.path}: a header of {length} bytes in a file of {self._size}: {remedy}")
        header = self._file.read(length)
        if len(header) != length:
            raise WeightsError(f"{self.path}: the header ends after {len(header)} of {length} bytes")
        return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a key repeat and Python keeps the last: then two readers could see two different tensors."""
    found = dict(pairs)
    if len(found) != len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{shown(name)} appears twice")
    return found


def _parse(path: Path, header: bytes, file_size: int) -> dict[str, TensorInfo]:
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: the header is not valid: {error}") from None
    if not isinstance(entries, dict):
        raise WeightsError(f"{path}: the header holds a JSON {type(entries).__name__}, not an object")
    entries.pop("__metadata__", None)
    start = 8 + len(header)
    tensors = {name: _tensor(path, name, entry, start) for name, entry in entries.items()}
    end, previous = start, ""
    for info in sorted(tensors.values(), key=lambda info: (info.begin, info.end)):
        if info.begin < end:
            raise WeightsError(f"{path}: the bytes of {shown(info.name)} and {shown(previous)} overlap")
        if info.begin > end:
            gap = f"{info.begin - end} bytes before {shown(info.name)}"
            raise WeightsError(f"{path}: {gap} belong to no tensor")
        end, previous = info.end, info.name
    if end > file_size:
        remedy = f"{shown(previous)} ends at byte {end}: the file is truncated, download it again"
        raise WeightsError(f"{path} has {file_size} bytes but {remedy}")
    if end < file_size:
        raise WeightsError(f"{path}: {file_size - end} bytes after the last tensor belong to no tensor")
    return tensors


def _tensor(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    """Check one entry of the header. Python's integers cannot overflow; what matters is that sizes agree."""
    where = f"{path}: tensor {name!r:.120}"
    if not isinstance(entry, dict):
        raise WeightsError(f"{where}: an object is expected, not {shown(entry)}")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise WeightsError(f"{where}: dtype={shown(dtype)} is not one of {', '.join(DTYPE_BITS)}")
    if not _is_sizes(shape) or len(shape) > MAX_RANK:
        raise WeightsError(f"{where}: shape={shown(shape)} is not a list of up to {MAX_RANK} sizes")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise WeightsError(f"{where}: data_offsets={shown(offsets)} is not a pair [begin, end]")
    needed, rest = divmod(math.prod(shape) * DTYPE_BITS[dtype], 8)
    if rest or offsets[1] - offsets[0] != needed:
        remedy = f"shape {shape} of {dtype} needs {needed}"
        raise WeightsError(f"{where}: data_offsets hold {offsets[1] - offsets[0]} bytes but {remedy}")
    return TensorInfo(name, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
