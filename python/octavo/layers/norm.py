"""Root-mean-square norm, alone and fused with the residual sum (Zhang and Sennrich, 2019), and layer norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from octavo import ops
from octavo.hf_config import ModelSpec
from octavo.layers import invariance
from octavo.layers.layer import Layer


class RMSNorm(Layer):
    """x / rms(x) * (weight + offset) over the last dimension, in float32 inside."""

    def __init__(self, size: int, eps: float, *, dtype: torch.dtype, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)
        self.eps = eps
        self.offset = offset
        self.invariant = invariance.is_wanted()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the norm of x [..., size]."""
        out = torch.empty_like(x)
        ops.rms_norm(out, x, self.weight, self.eps, self.offset, self.invariant)
        return out

    def of(self, x: Left, residual: torch.Tensor) -> Input:
        """Add x (None: nothing is left to add) to the residual [N, size], and return the residual's norm."""
        if isinstance(x, Normed) and x.norm is self:
            return x
        return self.add(x, residual) if isinstance(x, torch.Tensor) else Normed(self, residual)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Add x [N, size] to the residual in place, then return the residual's norm, in the memory of x."""
        ops.add_rms_norm(x, x, residual, self.weight, self.eps, self.offset, self.invariant)
        return x

    def in_place(self, x: torch.Tensor) -> None:
        """Norm x [..., size], which may be a strided view such as the query heads of a fused projection."""
        ops.rms_norm(x, x, self.weight, self.eps, self.offset, self.invariant)


class Normed:
    """The norm of a residual [N, H], not computed yet: a product of few rows does it on its way.

    It is the residual's as it is when a product takes it, or `tensor_of` does. `half` is what the product
    that added to the residual left of the norm: (scaled, squares) of `ops.linear`.
    """

    __slots__ = ("_tensor", "half", "norm", "residual")

    def __init__(
        self, norm: RMSNorm, residual: torch.Tensor, half: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> None:
        self.norm, self.residual, self.half = norm, residual, half
        self._tensor: torch.Tensor | None = None

    def tensor(self) -> torch.Tensor:
        """Compute it, once."""
        if self._tensor is None:
            self._tensor = self.norm(self.residual)
        return self._tensor


Input = torch.Tensor | Normed  # x [N, H], of a product
# Of half a layer: what is left to add to the residual [N, H], nothing, or the next norm with half of it made.
Left = torch.Tensor | Normed | None


def tensor_of(x: Input) -> torch.Tensor:
    """Return x, computed if it is not yet."""
    return x.tensor() if isinstance(x, Normed) else x


class LayerNorm(Layer):
    """(x - mean) / deviation * weight + bias over the last dimension (Ba et al., 2016).

    torch's, which no op of ours would beat: the models that have it spend their time in matrix products.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        dtype, size = getattr(torch, spec.dtype), spec.hidden_size
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)
        self.eps = spec.rms_eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the norm of x [..., H]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
