"""The log-mel spectrogram that Whisper was trained on (Radford et al., 2022), after preprocessor_config.json.

Formulas are public: a periodic Hann window, frames centred over a reflected signal, power, triangular filters
on Slaney's mel scale (Slaney, 1998: linear below 1 kHz, logarithmic above) of equal area, log10, at most
eight decades below the loudest, then (x + 4) / 4. Sums are float64, so small values beside large ones keep
their digits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from octavo.errors import ModelError
from octavo.hf.encoder import EncoderSpec
from octavo.hf.reader import Reader, read_json

_TOP_HERTZ = 8000.0
_LINEAR_HERTZ = 1000.0  # the mel scale is linear below and logarithmic above
_HERTZ_A_MEL = 200.0 / 3.0
_LOG_STEP = np.log(6.4) / 27.0
_FLOOR = 1e-10
_DECADES = 8.0
_MAX_SECONDS = 3600

FILE = "preprocessor_config.json"
_NEWER_FILE = "processor_config.json"  # transformers 5 keeps it there, under feature_extractor


@dataclass(frozen=True, kw_only=True)
class LogMel:
    """Feature extraction of one model: samples of float32 at `rate` -> [bins, frames] float32."""

    rate: int
    seconds: int  # every input is filled up with silence to so many
    bins: int
    fft: int
    hop: int

    @property
    def samples(self) -> int:
        """The most samples of an input."""
        return self.rate * self.seconds

    @property
    def frames(self) -> int:
        """Frames of any input."""
        return self.samples // self.hop

    def __call__(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the features of at most `self.samples` samples."""
        padded = np.zeros(self.samples)
        padded[: len(samples)] = samples
        padded = np.pad(padded, self.fft // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.fft)[:: self.hop][: self.frames]
        spectrum = np.fft.rfft(frames * _hann(self.fft))
        power = spectrum.real**2 + spectrum.imag**2
        mel = power @ _filters(self.bins, self.fft, self.rate)
        decades = np.log10(np.maximum(mel, _FLOOR))
        bounded = np.maximum(decades, decades.max() - _DECADES)
        return np.ascontiguousarray(((bounded + 4.0) / 4.0).T, dtype=np.float32)


def load_log_mel(folder: Path, encoder: EncoderSpec) -> LogMel:
    """Read a folder's feature extraction. Raises ModelError if it is missing or is not the encoder's."""
    raw, path = read_json(folder / FILE), folder / FILE
    if raw is None:
        newer = read_json(folder / _NEWER_FILE)
        raw = None if newer is None else newer.get("feature_extractor")
        path = folder / _NEWER_FILE
    if not isinstance(raw, dict):
        raise ModelError(
            f"{folder / FILE} is missing: it says how audio becomes features; download it beside config.json"
        )
    config = Reader(raw, path, {"feature_size": 80, "sampling_rate": 16000, "hop_length": 160, "n_fft": 400})
    kind = config.get("feature_extractor_type", "WhisperFeatureExtractor")
    if kind != "WhisperFeatureExtractor":
        raise config.error("feature_extractor_type", kind, "only WhisperFeatureExtractor is supported")
    for key, plain in (("padding_value", 0.0), ("dither", 0.0), ("do_normalize", False)):
        if config.get(key, plain) != plain:
            raise config.error(key, config.get(key), f"only {plain} is supported")
    log_mel = LogMel(
        rate=config.integer("sampling_rate", low=1000, high=192_000),
        seconds=config.integer("chunk_length", 30, high=_MAX_SECONDS),
        bins=config.integer("feature_size"),
        fft=config.integer("n_fft", low=16, high=1 << 14),
        hop=config.integer("hop_length", high=1 << 14),
    )
    if log_mel.bins != encoder.mel_bins:
        remedy = f"config.json has num_mel_bins={encoder.mel_bins}; take both files from one checkpoint"
        raise config.error("feature_size", log_mel.bins, remedy)
    if log_mel.frames != encoder.frames:
        remedy = f"it makes {log_mel.frames} frames and the encoder takes {encoder.frames}"
        raise config.error("chunk_length", log_mel.seconds, f"{remedy} (2 * max_source_positions)")
    if log_mel.fft // 2 >= log_mel.samples:
        raise config.error("n_fft", log_mel.fft, f"an input has only {log_mel.samples} samples")
    return log_mel


@functools.cache
def _hann(size: int) -> npt.NDArray[np.float64]:
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(size) / size)


@functools.cache
def _filters(bins: int, fft: int, rate: int) -> npt.NDArray[np.float64]:
    """[1 + fft // 2, bins]: triangles whose corners are equally far apart in mel, each of area 1 over Hz."""
    corners = _hertz(np.linspace(_mel(0.0), _mel(_TOP_HERTZ), bins + 2))
    hertz = np.linspace(0.0, rate // 2, 1 + fft // 2)[:, None]
    widths = np.diff(corners)
    rising = (hertz - corners[:-2]) / widths[:-1]
    falling = (corners[2:] - hertz) / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * (2.0 / (corners[2:] - corners[:-2]))


def _mel(hertz: float) -> float:
    if hertz < _LINEAR_HERTZ:
        return hertz / _HERTZ_A_MEL
    return float(_LINEAR_HERTZ / _HERTZ_A_MEL + np.log(hertz / _LINEAR_HERTZ) / _LOG_STEP)


def _hertz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    corner = _LINEAR_HERTZ / _HERTZ_A_MEL
    curved = _LINEAR_HERTZ * np.exp(_LOG_STEP * (np.maximum(mel, corner) - corner))
    return np.where(mel < corner, mel * _HERTZ_A_MEL, curved)
