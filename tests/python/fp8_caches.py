"""Keys and values kept in e4m3, worked out from the format's definition alone: what transformers computes
with such a cache is the truth for kv_cache_dtype="fp8". Checkpoints with scales for it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache


def _numbers() -> torch.Tensor:
    """Every number from 0 to 448, rising: eight of each power of two, and of the subnormal ones."""
    normal = [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)]
    return torch.tensor([m * 2.0**-9 for m in range(8)] + normal[:-1], dtype=torch.float64)


NUMBERS = _numbers()


def nearest(x: torch.Tensor) -> torch.Tensor:
    """Return what e4m3 makes of float32 numbers: the nearest of NUMBERS, of two that of the even code."""
    size = x.double().abs()
    above = torch.searchsorted(NUMBERS, size.contiguous()).clamp(1, len(NUMBERS) - 1)
    low, high = NUMBERS[above - 1], NUMBERS[above]
    upward = (high - size < size - low) | ((high - size == size - low) & (above % 2 == 0))
    return torch.where(upward, high, low).copysign(x.double())


def kept(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Return what a cache with this scale gives back of x."""
    return (nearest(x / scale) * scale).to(x.dtype)


class Fp8Cache(DynamicCache):
    """Keeps all that passes through it in e4m3. `scales`: of keys and values by layer."""

    def __init__(self, scales: dict[int, tuple[float, float]] | None = None) -> None:
        super().__init__()
        self.scales = scales or {}

    def update(self, keys: Any, values: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        k_scale, v_scale = self.scales.get(layer_idx, (1.0, 1.0))
        return super().update(kept(keys, k_scale), kept(values, v_scale), layer_idx, *args, **kwargs)


def logits_of(
    model: Any, ids: list[int], scales: dict[int, tuple[float, float]] | None = None
) -> torch.Tensor:
    """Return transformers' logits [N, V] of a sequence whose keys and values are kept in e4m3."""
    with torch.inference_mode():
        out = model(torch.tensor([ids]), past_key_values=Fp8Cache(scales), use_cache=True)
    logits: torch.Tensor = out.logits[0]
    return logits


def save_scales(source: Path, folder: Path, scales: dict[str, float]) -> Path:
    """Copy a checkpoint and add these tensors to it."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name: torch.tensor(value) for name, value in scales.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
