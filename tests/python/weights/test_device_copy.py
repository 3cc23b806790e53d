"""Pieces of files land where they belong, whatever thread reads them. Device memory is the CPU's here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from octavo.errors import WeightsError
from octavo.weights import device_copy
from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.device_copy import FileRows, copy_to_device


def test_parts_of_a_fused_weight_arrive_byte_for_byte(tmp_path: Path, monkeypatch: Any) -> None:
    """Pieces smaller than a tensor and no multiple of a row, so that every edge is met."""
    monkeypatch.setattr(device_copy, "PIECE_BYTES", 1000)
    tensors = {f"t{i}": torch.randn(37 + i, 24).to(torch.bfloat16) for i in range(9)}
    save_file(tensors, tmp_path / "model.safetensors")
    fused = torch.full((sum(len(t) for t in tensors.values()), 24), float("nan"), dtype=torch.bfloat16)
    with open_checkpoint(tmp_path) as checkpoint:
        sources, first = [], 0
        for name, tensor in tensors.items():
            rows = fused[first : first + len(tensor)]
            sources.append(FileRows(rows, checkpoint.files[name], checkpoint.tensors[name]))
            first += len(tensor)
        copy_to_device(sources, threads=3)
    assert torch.equal(fused, torch.cat(list(tensors.values())))


def test_8_bits_arrive_byte_for_byte(tmp_path: Path) -> None:
    tensor = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    save_file({"t": tensor}, tmp_path / "model.safetensors")
    rows = torch.zeros(256, dtype=torch.float8_e4m3fn)
    with open_checkpoint(tmp_path) as checkpoint:
        copy_to_device([FileRows(rows, checkpoint.files["t"], checkpoint.tensors["t"])])
    assert torch.equal(rows.view(torch.uint8), tensor.view(torch.uint8))


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    save_file({"t": torch.zeros(64, 64)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
        source = FileRows(torch.empty(64, 64), checkpoint.files["t"], checkpoint.tensors["t"])
        with pytest.raises(WeightsError, match=r"model\.safetensors ends at byte 100"):
            copy_to_device([source])


def test_nothing_to_copy_is_nothing_to_do() -> None:
    copy_to_device([])
