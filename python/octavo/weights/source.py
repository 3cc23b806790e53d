"""Where a tensor of a checkpoint goes in a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Source:
    """A stored tensor of `shape`, laid out anew as `view`'s shape, is copied to `view`, part of a parameter.

    A module whose weights are stored otherwise than it holds them has a method `spellings(path)`: for each
    way to store them, the names and the Source of each. The loader takes the way that a checkpoint has most
    names of.
    """

    view: torch.Tensor
    shape: tuple[int, ...]
    scales: torch.Tensor | None = None  # the tensor is MXFP4 and these, which come first, are its scales
    also: tuple[tuple[int, ...], ...] = ()  # other shapes it may be stored in
    write: Callable[[torch.Tensor], None] | None = None  # what is done instead of copying
