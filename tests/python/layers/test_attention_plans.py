"""What a model's layers ask for when a device plans their attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo import ops
from octavo.layers.attention import AttentionContext, AttentionPlans


def column(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.fixture
def asked(monkeypatch: Any) -> list[dict[str, Any]]:
    """The options that plans' sizes are asked with; plans themselves need no device."""
    calls: list[dict[str, Any]] = []

    def size(*shape: object, **options: Any) -> int:
        calls.append(options)
        return 512 if options["share_prefixes"] else 256

    monkeypatch.setattr(ops, "attention_plan_bytes", size)
    return calls


@pytest.mark.parametrize(
    ("most_queries", "window", "decode_queries", "shares"),
    [
        (0, 0, 1, True),
        (0, 0, 3, True),
        (1, 0, 1, False),
        (3, 0, 3, False),
        (0, 64, 1, False),
        (0, 0, 0, False),
    ],
)
def test_mixed_steps_share_prefixes_where_every_key_is_seen(
    asked: list[dict[str, Any]], most_queries: int, window: int, decode_queries: int, shares: bool
) -> None:
    cache, q = torch.zeros(2, 2, 1, 16, 64), torch.zeros(1, 4, 64)
    context = AttentionContext([cache], [column(1).view(1, 1)], [0])
    context.row_slot, context.query_start, context.seq_len = column(0), column(0, 1), column(1)
    plans = AttentionPlans(tokens=8, rows=2, decode_queries=decode_queries)
    plans.begin(most_queries)
    first = plans.of(context, q, cache, context.block_tables[0], window)
    assert first.share_prefixes == shares
    assert plans.of(context, q, cache, context.block_tables[0], window).share_prefixes == shares
    # One piece of memory serves all steps of a window, so it is sized for those that share.
    assert {call["max_queries"] for call in asked} == {0, 1, decode_queries}
    assert first.memory.numel() == (512 if window == 0 and decode_queries > 0 else 256)
