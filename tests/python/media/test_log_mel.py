"""Features are those of transformers' WhisperFeatureExtractor, and a folder's file is read or refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from octavo.errors import ModelError
from octavo.hf.encoder import EncoderSpec
from octavo.media.log_mel import LogMel, load_log_mel

ENCODER = EncoderSpec(num_layers=2, num_heads=2, intermediate_size=8, mel_bins=20, length=50)


def speech(count: int) -> Any:
    """Tones that fade, in noise: loud and faint bins together."""
    draw, time = np.random.default_rng(1), np.arange(count) / 16000
    tone = 0.4 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 3100 * time)
    return (tone + 0.1 * draw.standard_normal(count) * np.exp(-time)).astype(np.float32)


@pytest.mark.parametrize(
    ("seconds", "count", "bins"), [(30, 480_000, 80), (30, 77_777, 128), (1, 9_001, 20), (1, 1, 20)]
)
def test_features_are_transformers(seconds: int, count: int, bins: int) -> None:
    import transformers

    theirs = transformers.WhisperFeatureExtractor(feature_size=bins, chunk_length=seconds)
    ours = LogMel(rate=16000, seconds=seconds, bins=bins, fft=400, hop=160)
    samples = speech(count)
    got = ours(samples)
    assert (got.dtype, got.shape) == (np.float32, (bins, ours.frames))
    padded = np.pad(samples, (0, ours.samples - count))
    exact = theirs._np_extract_fbank_features(padded[None], "cpu")[0]
    assert np.abs(got - exact).max() < 1e-5
    # Their torch path sums in float32 and loses digits of faint bins beside loud ones.
    quick = theirs(samples, sampling_rate=16000, return_tensors="np").input_features[0]
    assert np.abs(got - quick).max() < 3e-4


def test_another_shape_of_frames_is_transformers_too() -> None:
    import transformers

    shape = {"sampling_rate": 22050, "hop_length": 256, "n_fft": 512}
    theirs = transformers.WhisperFeatureExtractor(feature_size=40, chunk_length=2, **shape)
    ours = LogMel(rate=22050, seconds=2, bins=40, fft=512, hop=256)
    samples = speech(44_100)
    exact = theirs._np_extract_fbank_features(samples[None], "cpu")[0]
    assert np.abs(ours(samples) - exact).max() < 1e-5


def write(folder: Path, **changes: Any) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps({**tiny_models.WHISPER_FEATURES, **changes}))
    return folder


def test_both_places_of_the_file_are_known(tmp_path: Path) -> None:
    want = LogMel(rate=16000, seconds=1, bins=20, fft=400, hop=160)
    assert load_log_mel(write(tmp_path), ENCODER) == want
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "old.json")
    nested = {"feature_extractor": tiny_models.WHISPER_FEATURES}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert load_log_mel(tmp_path, ENCODER) == want


def test_transformers_file_is_read(tmp_path: Path) -> None:
    import transformers

    transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=1).save_pretrained(tmp_path)
    assert load_log_mel(tmp_path, ENCODER).frames == 100


def test_a_missing_file_says_what_it_is_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="preprocessor_config.json is missing: it says how audio becomes"):
        load_log_mel(tmp_path, ENCODER)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("feature_extractor_type", "SeamlessM4TFeatureExtractor"),
        ("feature_size", 80),
        ("feature_size", "20"),
        ("chunk_length", 30),
        ("chunk_length", 0),
        ("sampling_rate", 8000),
        ("sampling_rate", 10**9),
        ("hop_length", 0),
        ("n_fft", 4),
        ("dither", 0.1),
        ("padding_value", 1.0),
        ("do_normalize", True),
    ],
)
def test_what_is_not_this_encoders_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    field = "chunk_length" if (key, value) == ("sampling_rate", 8000) else key  # half the frames
    with pytest.raises(ModelError, match=f"{field}=.* is not valid"):
        load_log_mel(write(tmp_path, **{key: value}), ENCODER)


def test_a_window_longer_than_the_audio_is_refused(tmp_path: Path) -> None:
    short = dataclasses.replace(ENCODER, length=3)
    with pytest.raises(ModelError, match="n_fft=4096"):
        load_log_mel(write(tmp_path, n_fft=4096, sampling_rate=2000, hop_length=333), short)
