"""Audio brought to another rate is the same sound, and what that rate cannot hold is gone."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from octavo.media.resample import can_resample, resample

RATES = (8000, 11025, 12000, 22050, 24000, 32000, 44100, 48000, 96000)
EDGE = 2000  # output samples at each end that see the silence around the audio


def tone(rate: int, hertz: float, seconds: float = 1.0) -> Any:
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate + 0.3).astype(np.float32)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_tone_stays_the_same_tone(rate: int, share: float) -> None:
    hertz = share * min(rate, 16000) / 2
    got = resample(tone(rate, hertz), rate, 16000)
    want = tone(16000, hertz)
    assert (got.dtype, len(got)) == (np.float32, 16000)
    assert np.abs(got - want)[EDGE:-EDGE].max() < 1e-4


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate > 17000])
def test_what_the_new_rate_cannot_hold_is_taken_out(rate: int) -> None:
    assert np.abs(resample(tone(rate, 8100), rate, 16000))[EDGE:-EDGE].max() < 1e-4


def test_thirty_seconds_take_little_memory() -> None:
    samples = np.zeros(48000 * 30, np.float32)
    tracemalloc.start()
    try:
        assert len(resample(samples, 48000, 16000)) == 480_000
        assert tracemalloc.get_traced_memory()[1] < 64 << 20  # the windows together are 1.5 GiB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [1, 2, 440, 441, 442, 5000])
def test_any_length_gives_its_share(count: int) -> None:
    got = resample(np.ones(count, np.float32), 44100, 16000)
    assert len(got) == -(-count * 160 // 441)
    assert np.isfinite(got).all()


def test_the_same_rate_changes_nothing() -> None:
    samples = tone(16000, 440)
    assert resample(samples, 16000, 16000) is samples


def test_rates_without_a_common_factor_would_need_too_much() -> None:
    assert all(can_resample(rate, 16000) for rate in RATES)
    assert not can_resample(16001, 16000)
    assert not can_resample(44101, 16000)
