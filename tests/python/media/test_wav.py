"""WAV files of every PCM width become mono samples in [-1, 1]; other files are refused with a remedy."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from octavo.media.wav import read_wav

VALUES = np.array([[0.0, 0.5], [-1.0, 1.0], [0.25, 0.25], [-0.5, -1.0]])


def write(path: Path, width: int, values: np.ndarray = VALUES, rate: int = 8000) -> Path:
    full = 2 ** (8 * width - 1)
    numbers = np.clip(np.round(values * full), -full, full - 1).astype(np.int64)
    if width == 1:
        numbers += 128
    data = b"".join(int(n).to_bytes(width, "little", signed=width > 1) for n in numbers.reshape(-1))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(values.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_channels_of_every_width_are_averaged(tmp_path: Path, width: int) -> None:
    samples, rate = read_wav(write(tmp_path / "a.wav", width))
    assert (rate, samples.dtype) == (8000, np.float32)
    assert np.allclose(samples, VALUES.mean(axis=1), atol=1.1 * 2.0 ** (1 - 8 * width))


def test_one_channel_is_taken_as_it_is(tmp_path: Path) -> None:
    samples, _ = read_wav(write(tmp_path / "a.wav", 2, VALUES[:, :1]))
    assert samples.tolist() == [0.0, -1.0, 0.25, -0.5]


def test_a_file_that_ends_early_gives_what_it_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 2)
    path.write_bytes(path.read_bytes()[:-3])
    assert len(read_wav(path)[0]) == 3


@pytest.mark.parametrize("data", [b"", b"ID3\x04 not a wave", b"RIFF\x00\x00\x00\x00WAVE"])
def test_other_files_are_refused_with_the_remedy(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.mp3").write_bytes(data)
    with pytest.raises(ValueError, match="a.mp3 is not a PCM WAV file .*: convert it"):
        read_wav(tmp_path / "a.mp3")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.media.wav.MAX_BYTES", 8)
    with pytest.raises(ValueError, match="cut it into pieces"):
        read_wav(write(tmp_path / "a.wav", 2))
