"""The reader agrees with the safetensors library on good files and refuses every malformed one."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from octavo.errors import WeightsError
from octavo.weights.safetensors_file import SafetensorsFile


def write(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_tensors_equal_those_the_library_wrote(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(2.5, dtype=torch.float16),
        "ünïcode": torch.arange(6, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "t.safetensors", metadata={"format": "pt"})
    with SafetensorsFile(tmp_path / "t.safetensors") as file:
        assert set(file.tensors) == set(tensors)
        for name, tensor in tensors.items():
            info = file.tensors[name]
            assert info.shape == tuple(tensor.shape)
            assert bytes(file.data(info)) == tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def test_data_outlives_the_file_object(tmp_path: Path) -> None:
    with SafetensorsFile(write(tmp_path / "f", {"a": entry(0, 3)}, b"abc")) as file:
        data = file.data(file.tensors["a"])
    assert bytes(data) == b"abc"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="gone.safetensors cannot be read"):
        SafetensorsFile(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_without_a_whole_length_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(b"\0" * size)
    with pytest.raises(WeightsError, match=f"only {size} bytes"):
        SafetensorsFile(tmp_path / "f")


def test_a_header_longer_than_the_bound_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="at most 100000000"):
        SafetensorsFile(write(tmp_path / "f", {}, length=2**63))


def test_a_header_longer_than_the_file_is_truncation(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="truncated"):
        SafetensorsFile(write(tmp_path / "f", {}, length=3))


@pytest.mark.parametrize("cut", [1, 100])
def test_a_file_cut_short_is_refused_with_the_tensor_that_is_cut(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "f", {"first": entry(0, 100), "last": entry(100, 200)}, b"x" * (200 - cut))
    with pytest.raises(WeightsError, match="'last' ends at byte .* truncated"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[]", b"7", b"\xff\xfe", b'{"a": NaN}', b"{" * 2000, b'{"a":' * 100000],
)
def test_a_header_that_is_no_json_object_is_refused(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(WeightsError):
        SafetensorsFile(write(tmp_path / "f", header))


def test_a_name_that_appears_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry(0, 4))
    header = f'{{"a": {one}, "a": {one}}}'.encode()
    with pytest.raises(WeightsError, match="'a' appears twice"):
        SafetensorsFile(write(tmp_path / "f", header, b"1234"))


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="'b' and 'a' overlap"):
        SafetensorsFile(write(tmp_path / "f", {"a": entry(0, 4), "b": entry(3, 7)}, b"1234567"))


def test_bytes_that_belong_to_no_tensor_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="4 bytes before 'a'"):
        SafetensorsFile(write(tmp_path / "f", {"a": entry(4, 8)}, b"12345678"))
    with pytest.raises(WeightsError, match="2 bytes after the last"):
        SafetensorsFile(write(tmp_path / "f", {"a": entry(0, 4)}, b"123456"))


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [],
        {},
        entry(0, 4, dtype="F99"),
        entry(0, 4, dtype=None),
        entry(0, 4, dtype=["U8"]),
        entry(0, 4, [-4]),
        entry(0, 4, ["4"]),
        entry(0, 4, [4.0]),
        entry(0, 4, [True, 4]),
        entry(0, 4, [2**62, 2**62, 4]),
        entry(0, 4, [1] * 9),
        entry(0, 4, [5]),
        entry(0, 4, [1], "F64"),
        entry(0, 1, [1], "F4"),
        {"dtype": "U8", "shape": [4], "data_offsets": [4, 0]},
        {"dtype": "U8", "shape": [4], "data_offsets": [0]},
        {"dtype": "U8", "shape": [4], "data_offsets": [-4, 0]},
        {"dtype": "U8", "shape": [4], "data_offsets": [0, 2**64]},
        {"dtype": "U8", "shape": 4, "data_offsets": [0, 4]},
    ],
)
def test_a_malformed_entry_is_refused_by_name(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(WeightsError, match="'bad'"):
        SafetensorsFile(write(tmp_path / "f", {"bad": bad}, b"1234"))
