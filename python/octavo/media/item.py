"""MediaItem: one image or audio clip of a prompt, checked, as engine and runner pass it on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

MODALITIES = ("audio",)


@dataclass(frozen=True, slots=True, eq=False)
class MediaItem:
    """One input of a model's encoder.

    `data` is what the encoder takes: of audio its features, [bins, frames] float32. `hash` (16 bytes) covers
    the user's content and all that was done to it: items of one hash are encoded once. `embeddings` counts
    the positions that come out. A `cross` item has no tokens in the prompt: every layer attends to it.
    """

    modality: str
    data: npt.NDArray[Any]
    hash: bytes
    embeddings: int
    cross: bool = False
