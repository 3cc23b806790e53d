"""Linear layers in fewer bits: the class of each scheme, put in the place of those it replaces."""

from __future__ import annotations

import torch
from torch import nn

from octavo.errors import ModelError
from octavo.hf.quantization import KEY, Quantization
from octavo.layers.fp8 import Fp8Linear
from octavo.layers.layer import Layer
from octavo.layers.linear import FusedLinear, Linear

# A class takes the Linear it replaces, whose weight has no memory, and the Quantization. Its parameters are
# made on torch's device and it has the `spellings` of weights/source.py.
SCHEMES: dict[str, type[Layer]] = {"fp8": Fp8Linear}


def quantize_linears(model: nn.Module, quantization: Quantization) -> None:
    """Replace the linear layers that are quantized and give the others their memory, on torch's device.

    What only derives from Linear, such as a router, is something else and keeps its dtype. Raises ModelError
    where one fused product would need two dtypes.
    """
    assert quantization.scheme is not None
    scheme = SCHEMES[quantization.scheme]
    for path, module in list(model.named_modules()):
        if not isinstance(module, Linear):
            continue
        if type(module) in (Linear, FusedLinear) and _converts(module, path, quantization):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, scheme(module, quantization))
        else:
            weight = torch.empty(module.weight.shape, dtype=module.weight.dtype)
            module.weight = nn.Parameter(weight, requires_grad=False)


def _converts(linear: Linear, path: str, quantization: Quantization) -> bool:
    parent, own = path.rpartition(".")[::2]
    names = [f"{parent}.{part}" for part, _ in getattr(linear, "parts", ((own, 0),))]
    kept = [name for name in names if not quantization.converts(name)]
    if kept and len(kept) < len(names):
        raise ModelError(
            f"{KEY} leaves {', '.join(kept)} in 16 or 32 bits but not all of {', '.join(names)}, which are "
            "one product here: use a checkpoint that treats them alike"
        )
    return not kept
