"""Weights reach a GPU whatever its current stream is still busy with."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.device_copy import FileRows, copy_to_device

_NUMBERS = 1 << 20
_CYCLES = 200_000_000  # a tenth of a second


def test_what_the_stream_has_yet_to_write_is_written_before_the_copy(tmp_path: Path) -> None:
    """The allocator gives memory away again while a kernel for its last owner waits in the stream."""
    tensor = torch.arange(_NUMBERS, dtype=torch.float32)
    save_file({"t": tensor}, tmp_path / "model.safetensors")
    spent = torch.empty(_NUMBERS, device="cuda")
    address = spent.data_ptr()
    torch.cuda._sleep(_CYCLES)  # type: ignore[no-untyped-call]
    spent.fill_(-1.0)
    del spent
    rows = torch.empty(_NUMBERS, device="cuda")
    assert rows.data_ptr() == address
    with open_checkpoint(tmp_path) as checkpoint:
        copy_to_device([FileRows(rows, checkpoint.files["t"], checkpoint.tensors["t"])])
    torch.cuda.synchronize()
    assert torch.equal(rows.cpu(), tensor)
