"""What layers hand to products: on a GPU a product of few rows reads whole vectors of each row of x."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import tiny_models
import torch
from models.stepper import Stepper

from octavo.layers import linear

# Rows up to which a CPU streams weights in one dtype or the other, and a GPU does, and one more of each.
COUNTS = (1, 4, 5, 8, 9, 16, 17)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_of_every_product_lies_in_one_piece(
    tiny_folder: Any, monkeypatch: pytest.MonkeyPatch, model_name: str, dtype: str
) -> None:
    """Also of those that a CPU leaves to torch, which takes any layout: a GPU may not."""
    steps: list[int] = []  # elements between neighbours of a row
    streams = linear.streams

    def watched(x: torch.Tensor, weight: torch.Tensor, opens: bool = False, more: Any = ()) -> bool:
        steps.append(x.stride(1))
        return streams(x, weight, opens, more)

    monkeypatch.setattr(linear, "streams", watched)
    stepper = Stepper(tiny_folder(model_name), dtype=dtype, max_len=sum(COUNTS))
    tokens = iter(tiny_models.random_prompts(1, low=sum(COUNTS), high=sum(COUNTS), seed=6)[0])
    for count in COUNTS:
        stepper.step({0: list(itertools.islice(tokens, count))})
    assert len(steps) >= 3 * len(COUNTS) * stepper.spec.num_layers
    assert set(steps) == {1}
