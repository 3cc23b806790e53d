"""Audio at another sampling rate: a windowed sinc at every output sample, its phases computed once.

The kernel is a low-pass at 0.95 of the lower of the two Nyquist frequencies under a Kaiser window of 64 zero
crossings to each side: a tone below 0.9 of the lower Nyquist comes out within 1e-4 of itself, of one above
1.0 less than 1e-4 is left (Smith, "Digital Audio Resampling"; Oppenheim and Schafer for the window).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

_ZEROS = 64
_KAISER_BETA = 9.0
_ROLLOFF = 0.95
_CHUNK = 1 << 20  # inputs of the windows that are multiplied at once
# Phases of the kernel: 160 for 44.1 kHz -> 16 kHz, 640 for 11.025 kHz. A rate that shares no factor with the
# wanted one would need a kernel of gigabytes.
MAX_PHASES = 1000


def can_resample(rate: int, wanted: int) -> bool:
    """Whether `resample` takes these rates."""
    return wanted // math.gcd(rate, wanted) <= MAX_PHASES


def resample(samples: npt.NDArray[np.float32], rate: int, wanted: int) -> npt.NDArray[np.float32]:
    """Return samples [n] at `rate` as [ceil(n * wanted / rate)] at `wanted`. REQUIRES: can_resample()."""
    if rate == wanted:
        return samples
    common = math.gcd(rate, wanted)
    step, phases = rate // common, wanted // common
    kernel, reach = _kernel(step, phases)
    count = -(-len(samples) * phases // step)
    groups = -(-count // phases)
    # Group g holds the outputs of inputs from g * step on; each sees `reach` inputs to either side.
    padded = np.zeros(groups * step + kernel.shape[1])
    padded[reach : reach + len(samples)] = samples
    inputs = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1])[::step][:groups]
    outputs = np.empty((groups, phases), np.float32)
    rows = max(1, _CHUNK // kernel.shape[1])
    for first in range(0, groups, rows):  # the product copies its windows, which overlap
        outputs[first : first + rows] = inputs[first : first + rows] @ kernel.T
    return outputs.reshape(-1)[:count]


@functools.lru_cache(maxsize=8)
def _kernel(step: int, phases: int) -> tuple[npt.NDArray[np.float64], int]:
    """[phases, taps] and how many inputs it reaches to the left: output p of a group lies at p * step /
    phases inputs behind the group's first.
    """
    cutoff = _ROLLOFF * min(1.0, phases / step)  # of the input's Nyquist frequency
    reach = math.ceil(_ZEROS / cutoff)
    taps = 2 * reach + step
    distance = np.arange(taps)[None, :] - reach - np.arange(phases)[:, None] * (step / phases)
    inside = np.maximum(0.0, 1.0 - (distance * cutoff / _ZEROS) ** 2)
    window = np.i0(_KAISER_BETA * np.sqrt(inside)) / np.i0(_KAISER_BETA) * (inside > 0)
    return cutoff * np.sinc(cutoff * distance) * window, reach
