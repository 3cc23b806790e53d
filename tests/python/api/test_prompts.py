from __future__ import annotations

from typing import Any

import pytest

from octavo import KvRange, KvRetention


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": -1}, "begin=-1"),
        ({"begin": 3, "end": 3}, "end=3"),
        ({"priority": 101}, "priority=101"),
        ({"priority": 3.5}, "priority=3.5"),
        ({"duration_ms": 0}, "duration_ms=0"),
        ({"duration_ms": 10**9 + 1}, "duration_ms=1000000001"),
    ],
)
def test_a_range_is_refused_with_field_and_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KvRange(**options)


def test_ranges_rise_and_do_not_overlap() -> None:
    KvRetention(ranges=[KvRange(end=4), KvRange(begin=4)])
    for second in (KvRange(begin=3), KvRange(begin=0)):
        with pytest.raises(ValueError, match="begin="):
            KvRetention(ranges=[KvRange(end=4), second])
    with pytest.raises(ValueError, match="begin=9"):
        KvRetention(ranges=[KvRange(), KvRange(begin=9)])
    with pytest.raises(ValueError, match="65 entries"):
        KvRetention(ranges=[KvRange(begin=i, end=i + 1) for i in range(65)])
    with pytest.raises(ValueError, match="ranges="):
        KvRetention(ranges=[(0, 4, 80)])  # type: ignore[list-item]


def test_ranges_are_counted_out_for_a_prompt() -> None:
    wish = KvRetention(ranges=[KvRange(end=4, priority=90, duration_ms=5), KvRange(begin=6)])
    assert wish.spans(8) == [(0, 4, 90, 5), (6, 8, 35, 0)]
    with pytest.raises(ValueError, match="begin=6 is not valid: the prompt has 6 tokens"):
        wish.spans(6)
