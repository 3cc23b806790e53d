"""MXFP4, GPT-OSS's format of experts: 32 numbers of 4 bits share a power of two.

Weights are unpacked when they are loaded, to 16 or 32 bits, because no product here reads 4. Every number
they can be is exact in bfloat16. Source: OCP Microscaling Formats (MX) Specification 1.0.
"""

from __future__ import annotations

import torch

BLOCK = 32  # numbers that share a scale, two to a byte, the lower half first
SCALE_BIAS = 127
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def unpack(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return float32 [..., G * 32] of blocks [..., G, 16] and their scales [..., G], both uint8."""
    table = torch.tensor(E2M1)
    low, high = table[(blocks & 15).long()], table[(blocks >> 4).long()]
    numbers = torch.stack((low, high), dim=-1).flatten(-2)
    return torch.ldexp(numbers, scales.int()[..., None] - SCALE_BIAS).flatten(-2)
