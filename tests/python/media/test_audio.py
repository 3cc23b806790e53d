"""multi_modal_data={"audio": ...}: what is accepted, what refused with a remedy, what the same content."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from octavo.media.audio import AudioInput
from octavo.media.log_mel import LogMel

LOG_MEL = LogMel(rate=16000, seconds=1, bins=20, fft=400, hop=160)
SOUND = tiny_models.sounds(1)[0]


@pytest.fixture
def audio() -> AudioInput:
    return AudioInput(LOG_MEL, 50)


def hash_of(audio: AudioInput, samples: Any, rate: Any = 16000) -> bytes:
    (item,) = audio.items({"audio": (samples, rate)}, "prompt")
    return item.hash


def test_a_clip_becomes_a_cross_item_of_all_positions(audio: AudioInput) -> None:
    (item,) = audio.items({"audio": (SOUND, 16000)}, "prompt")
    assert (item.modality, item.embeddings, item.cross, len(item.hash)) == ("audio", 50, True, 16)
    assert np.array_equal(item.data, LOG_MEL(SOUND))


def test_every_spelling_of_the_same_clip_is_the_same_content(audio: AudioInput) -> None:
    want = hash_of(audio, SOUND)
    assert hash_of(audio, SOUND.astype(np.float64)) == want
    assert hash_of(audio, SOUND.tolist()) == want
    assert hash_of(audio, torch.from_numpy(SOUND)) == want
    assert hash_of(audio, np.repeat(SOUND, 2)[::2]) == want  # a view with strides
    assert hash_of(audio, SOUND, np.int64(16000)) == want
    assert hash_of(audio, SOUND, 16000.0) == want
    assert audio.items({"audio": [(SOUND, 16000)]}, "prompt")[0].hash == want


def test_whatever_changes_the_sound_is_other_content(audio: AudioInput) -> None:
    louder, longer = SOUND.copy(), np.append(SOUND, np.float32(0))
    louder[-1] += 1e-3
    other = AudioInput(LogMel(rate=16000, seconds=1, bins=20, fft=512, hop=160), 50)
    hashes = [hash_of(audio, SOUND), hash_of(audio, louder), hash_of(audio, longer)]
    hashes += [hash_of(audio, SOUND, 22050), hash_of(other, SOUND)]
    assert len(set(hashes)) == 5


def test_what_the_caller_does_later_changes_nothing(audio: AudioInput) -> None:
    samples = SOUND.copy()
    (item,) = audio.items({"audio": (samples, 16000)}, "prompt")
    samples[:] = 0
    assert np.array_equal(item.data, LOG_MEL(SOUND))


def test_another_rate_is_resampled(audio: AudioInput) -> None:
    def tone(rate: int) -> Any:
        return np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)

    (slow,) = audio.items({"audio": (tone(16000), 16000)}, "prompt")
    (fast,) = audio.items({"audio": (tone(48000), 48000)}, "prompt")
    loud = slow.data > slow.data.max() - 0.5  # within two decades of the loudest
    assert np.abs(slow.data - fast.data)[loud].max() < 0.01


def test_exactly_the_longest_clip_is_accepted(audio: AudioInput) -> None:
    for rate in (16000, 44100, 11025):
        (item,) = audio.items({"audio": (np.zeros(rate, np.float32), rate)}, "prompt")
        assert item.data.shape == (20, 100)
        with pytest.raises(ValueError, match=f"hears 1 s at a time, cut it into pieces of at most {rate}"):
            audio.items({"audio": (np.zeros(rate + 1, np.float32), rate)}, "prompt")


NAN = SOUND.copy()
NAN[7] = np.nan


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, 'prompt 3 has no audio, which this model needs: add "multi_modal_data"'),
        ({}, "prompt 3: multi_modal_data has no 'audio'"),
        ({"audio": None}, "multi_modal_data has no 'audio'"),
        ({"image": 5}, r"multi_modal_data\['image'\] is not valid: this model takes 'audio'"),
        ([1], "multi_modal_data must be a mapping, not list"),
        ({"audio": []}, r"\['audio'\] has 0 clips: this model takes one a prompt"),
        ({"audio": [(SOUND, 16000)] * 2}, "has 2 clips: this model takes one a prompt"),
        ({"audio": SOUND}, r"audio is not valid \(ndarray\): give \(samples, sampling_rate\)"),
        ({"audio": (SOUND,)}, r"audio is not valid \(tuple\)"),
        ({"audio": ("speech.wav", 16000)}, "samples are <U10, not floats"),
        ({"audio": ([[0.1], [0.1, 0.2]], 16000)}, "samples are no array"),
        ({"audio": (SOUND > 0, 16000)}, "samples are bool, not floats"),
        ({"audio": ((SOUND * 2**15).astype(np.int16), 16000)}, "samples are int16: divide them by 32768"),
        ({"audio": (np.stack([SOUND, SOUND]), 16000)}, r"the shape \[2, \d+\], not one dimension: give one"),
        ({"audio": (SOUND[:0], 16000)}, "samples are empty: give at least one"),
        ({"audio": (NAN, 16000)}, "sample 7 is nan: give finite numbers"),
        ({"audio": (np.array([0.0, 1e300]), 16000)}, r"sample 1 is 1e\+300: give finite numbers"),
        ({"audio": (SOUND, None)}, "sampling_rate=None is not valid: give the samples of a second"),
        ({"audio": (SOUND, True)}, "sampling_rate=True is not valid"),
        ({"audio": (SOUND, 0)}, "sampling_rate=0 is not valid"),
        ({"audio": (SOUND, float("nan"))}, "sampling_rate=nan is not valid"),
        ({"audio": (SOUND, 22050.5)}, "sampling_rate=22050.5 is not valid"),
        ({"audio": (SOUND, 16001)}, "sampling_rate=16001 is not supported: .* resample the audio to that"),
    ],
)
def test_bad_audio_is_refused_with_the_remedy(audio: AudioInput, data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audio.items(data, "prompt 3")
