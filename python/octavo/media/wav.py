"""PCM WAV files -> mono samples, for the command line. Other formats need a decoder that is not here."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

MAX_BYTES = 1 << 28


def read_wav(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """Return (samples in [-1, 1], sampling rate) of a file of 8, 16, 24 or 32 bit PCM; channels are averaged.

    Raises ValueError for what is none, OSError if it cannot be read.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            if file.getnframes() * channels * width > MAX_BYTES:
                raise ValueError(
                    f"{path} holds more than {MAX_BYTES >> 20} MiB of samples: cut it into pieces"
                )
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        remedy = "convert it, for example with ffmpeg -i FILE -ac 1 -ar 16000 -c:a pcm_s16le out.wav"
        raise ValueError(f"{path} is not a PCM WAV file ({error or 'it ends too early'}): {remedy}") from None
    data = data[: len(data) // (channels * width) * (channels * width)]
    samples = _to_float(np.frombuffer(data, np.uint8), width)
    return samples.reshape(-1, channels).mean(axis=1, dtype=np.float64).astype(np.float32), rate


def _to_float(data: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.float32]:
    if width == 1:  # the only width that is unsigned
        return (data.astype(np.float32) - 128.0) / 128.0
    # Little-endian: the bytes of a sample become the upper ones of an int32.
    wide = np.zeros((len(data) // width, 4), np.uint8)
    wide[:, 4 - width :] = data.reshape(-1, width)
    return (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
