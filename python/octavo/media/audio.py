"""`multi_modal_data={"audio": (samples, sampling_rate)}`: checked, hashed, made into features."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.media.item import MODALITIES, MediaItem
from octavo.media.log_mel import LogMel
from octavo.media.resample import can_resample, resample

_MIN_RATE, _MAX_RATE = 1000, 768_000
_FORM = "give (samples, sampling_rate) with samples a one-dimensional array of floats in [-1, 1]"


class AudioInput:
    """Turns what a prompt brings into the items of one model's encoder."""

    def __init__(self, log_mel: LogMel, embeddings: int) -> None:
        self._log_mel = log_mel
        self._embeddings = embeddings

    def items(self, data: Any, where: str) -> tuple[MediaItem, ...]:
        """Return the one clip of a prompt. ValueError names what is missing or wrong with it."""
        if data is None:
            raise ValueError(
                f"{where} has no audio, which this model needs: "
                'add "multi_modal_data": {"audio": (samples, sampling_rate)}'
            )
        if not isinstance(data, Mapping):
            raise ValueError(f"{where}: multi_modal_data must be a mapping, not {type(data).__name__}")
        for name in data:
            if name not in MODALITIES:
                raise ValueError(
                    f"{where}: multi_modal_data[{name!r}] is not valid: this model takes 'audio'"
                )
        clip = data.get("audio")
        if isinstance(clip, list):
            if len(clip) != 1:
                raise ValueError(
                    f"{where}: multi_modal_data['audio'] has {len(clip)} clips: this model takes one a prompt"
                )
            clip = clip[0]
        if clip is None:
            raise ValueError(f"{where}: multi_modal_data has no 'audio': {_FORM}")
        return (self._item(clip, f"{where}: audio"),)

    def _item(self, clip: Any, where: str) -> MediaItem:
        if not isinstance(clip, tuple) or len(clip) != 2:
            raise ValueError(f"{where} is not valid ({type(clip).__name__}): {_FORM}")
        samples, rate = _samples(clip[0], where), _rate(clip[1], where, self._log_mel.rate)
        most = self._log_mel.seconds
        if len(samples) > most * rate:
            raise ValueError(
                f"{where} lasts {len(samples) / rate:.1f} s ({len(samples)} samples at {rate} Hz): the model "
                f"hears {most} s at a time, cut it into pieces of at most {most * rate} samples"
            )
        digest = hashlib.blake2b(repr((rate, self._log_mel)).encode(), digest_size=16)
        digest.update(samples.data)
        features = self._log_mel(resample(samples, rate, self._log_mel.rate))
        return MediaItem("audio", features, digest.digest(), self._embeddings, cross=True)


def _samples(given: Any, where: str) -> npt.NDArray[np.float32]:
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # torch refuses tensors of a GPU, for one
        raise ValueError(f"{where}: samples are no array ({error}): {_FORM}") from error
    if array.dtype.kind in "iu":
        remedy = f"divide them by {np.iinfo(array.dtype).max + 1} to bring them to [-1, 1] as float32"
        raise ValueError(f"{where}: samples are {array.dtype}: {remedy}")
    if array.dtype.kind != "f":
        raise ValueError(f"{where}: samples are {array.dtype}, not floats: {_FORM}")
    if array.ndim != 1:
        remedy = "give one channel, such as the mean over the channels"
        raise ValueError(f"{where}: samples have the shape {list(array.shape)}, not one dimension: {remedy}")
    if not len(array):
        raise ValueError(f"{where}: samples are empty: give at least one")
    with np.errstate(over="ignore"):
        copy = array.astype(np.float32)
    finite = np.isfinite(copy)
    if not finite.all():
        i = int(np.argmin(finite))
        raise ValueError(f"{where}: sample {i} is {array[i]}: give finite numbers")
    return copy


def _rate(given: Any, where: str, wanted: int) -> int:
    number = isinstance(given, (int, float, np.integer, np.floating)) and not isinstance(given, bool)
    if not number or not _MIN_RATE <= given <= _MAX_RATE or given != int(given):
        remedy = f"give the samples of a second, an integer from {_MIN_RATE} to {_MAX_RATE}"
        raise ValueError(f"{where}: sampling_rate={given!r} is not valid: {remedy}")
    rate = int(given)
    if not can_resample(rate, wanted):
        remedy = f"it has too little in common with {wanted} Hz, resample the audio to that first"
        raise ValueError(f"{where}: sampling_rate={rate} is not supported: {remedy}")
    return rate
