"""Whisper in a plan: its config.json, its two groups, its memory, and what generation_config.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from octavo.cli.main import main
from octavo.config import CacheConfig, DeviceConfig, LoadConfig, ModelConfig
from octavo.errors import ModelError
from octavo.hf_config import ModelSpec, load_model_spec
from octavo.plan import Plan, footprint_of, resolve

# whisper-small.
SMALL = {
    "d_model": 768,
    "encoder_layers": 12,
    "encoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "decoder_layers": 12,
    "decoder_attention_heads": 12,
    "decoder_ffn_dim": 3072,
}
MULTILINGUAL = {
    "forced_decoder_ids": [[1, None], [2, 300]],
    "lang_to_id": {"<|en|>": 20, "<|de|>": 21},
    "task_to_id": {"transcribe": 300, "translate": 301},
    "no_timestamps_token_id": 310,
}


def write(folder: Path, generation: dict[str, Any] | None = None, **changes: Any) -> Path:
    raw = {"architectures": ["WhisperForConditionalGeneration"], **tiny_models.WHISPER, **changes}
    raw = {key: value for key, value in raw.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(raw))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def spec_of(folder: Path, generation: dict[str, Any] | None = None, **changes: Any) -> ModelSpec:
    return load_model_spec(write(folder, generation, **changes))


def plan_of(folder: Path, **cache: Any) -> Plan:
    model, load = ModelConfig(model=folder), LoadConfig(load_format="dummy")
    return resolve(model, load, CacheConfig(**cache), available_memory=1 << 30)


def test_the_spec_is_config_jsons(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    encoder = spec.encoder
    assert encoder is not None
    assert (encoder.num_layers, encoder.num_heads, encoder.intermediate_size) == (2, 2, 96)
    assert (encoder.mel_bins, encoder.length, encoder.frames, encoder.modality) == (20, 50, 100, "audio")
    assert (spec.hidden_size, spec.intermediate_size, spec.num_layers) == (64, 128, 3)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (4, 4, 16)
    assert (spec.cross_layers, spec.context_limit) == ((3, 4, 5), 96)
    assert all(spec.rope_of(layer) is None for layer in range(3))


def test_what_config_json_leaves_out_is_transformers_default(tmp_path: Path) -> None:
    import transformers

    raw = {"architectures": ["WhisperForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    spec, config = load_model_spec(tmp_path), transformers.WhisperConfig()
    assert spec.encoder is not None and spec.start is not None
    assert (spec.vocab_size, spec.hidden_size, spec.max_position) == (51865, 384, 448)
    assert (spec.encoder.num_heads, spec.num_heads) == (config.encoder_attention_heads, 6)
    assert (spec.encoder.length, spec.encoder.mel_bins) == (1500, 80)
    assert spec.start.token_id == config.decoder_start_token_id


@pytest.mark.parametrize("changes", [{}, SMALL, {"tie_word_embeddings": False}])
def test_the_number_of_parameters_is_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    import torch
    import transformers

    with torch.device("meta"):
        config = transformers.WhisperConfig(**{**tiny_models.WHISPER, **changes})
        model = transformers.WhisperForConditionalGeneration(config)
    want = sum(weight.numel() for weight in model.parameters())
    assert spec_of(tmp_path, **changes).num_parameters == want


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("d_model", 0),
        ("encoder_attention_heads", 3),
        ("decoder_attention_heads", 5),
        ("encoder_layers", 0),
        ("decoder_layers", -1),
        ("num_mel_bins", "80"),
        ("max_source_positions", 0),
        ("max_target_positions", 0),
        ("activation_function", "relu"),
        ("decoder_start_token_id", 512),
        ("suppress_tokens", [512]),
        ("suppress_tokens", 5),
        ("suppress_tokens", list(range(257))),
        ("begin_suppress_tokens", [-1]),
        ("begin_suppress_tokens", list(range(65))),
        ("forced_decoder_ids", [[2, 5]]),
        ("forced_decoder_ids", [[1, 512]]),
        ("forced_decoder_ids", [5]),
        ("forced_decoder_ids", 5),
        ("lang_to_id", [1]),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"{key}=.* is not valid"):
        spec_of(tmp_path, **{key: value})


def test_how_outputs_begin_stands_in_generation_config(tmp_path: Path) -> None:
    start = spec_of(tmp_path, tiny_models.WHISPER_GENERATION, suppress_tokens=[9]).start
    assert start is not None
    assert (start.token_id, start.prompt, start.multilingual) == (2, (2, 9, 11), False)
    assert (start.suppressed, start.begin_suppressed) == ((0, 5, 189, 258), (3, 12, 293, 476))


def test_older_folders_have_it_in_config_json(tmp_path: Path) -> None:
    start = spec_of(tmp_path, forced_decoder_ids=[[1, 7]], suppress_tokens=[4, 4]).start
    assert start is not None
    assert (start.prompt, start.suppressed, start.begin_suppressed) == ((2, 7), (4,), ())


@pytest.mark.parametrize(
    ("changes", "prompt"),
    [
        ({}, None),
        ({"forced_decoder_ids": None}, None),
        ({"forced_decoder_ids": [[1, 21], [2, 301]]}, (2, 21, 301)),
        ({"language": "de"}, (2, 21, 300, 310)),
        ({"language": "<|en|>", "task": "translate"}, (2, 20, 301, 310)),
        ({"language": "klingon"}, None),
    ],
)
def test_a_multilingual_model_has_a_prompt_once_the_language_is_known(
    tmp_path: Path, changes: dict[str, Any], prompt: tuple[int, ...] | None
) -> None:
    start = spec_of(tmp_path, {"decoder_start_token_id": 2, **MULTILINGUAL, **changes}).start
    assert start is not None
    assert (start.multilingual, start.prompt) == (True, prompt)


def test_the_cross_group_shares_the_pool_block_for_block(tmp_path: Path) -> None:
    plan = plan_of(write(tmp_path))
    full, cross = plan.footprint.groups
    assert (full.kind, cross.kind, cross.layers, cross.encoder_len) == ("full", "cross", (3, 4, 5), 50)
    assert (full.split, cross.split) == (1, 1)
    token = 3 * 2 * 64 * 4
    assert plan.footprint.block_bytes == 16 * token
    assert plan.footprint.cut.block_bytes == (16 * token, 16 * token)
    # A request of 20 tokens: two blocks of its own and four of the encoder's.
    assert plan.footprint.blocks_of(20) == 6
    assert plan.max_model_len == 96
    assert plan.num_blocks == 1 + 256 * (6 + 4)  # more can never be in use


def test_the_engine_is_told_of_the_group_and_takes_it(tmp_path: Path) -> None:
    from octavo.core import Engine, EngineConfig

    options = plan_of(write(tmp_path)).engine_options()
    assert [group.encoder_len for group in options["groups"]] == [0, 50]
    assert (options["encoder_budget"], options["sub_block_hits"]) == (50, False)
    Engine(EngineConfig(**options))


def test_memory_counts_the_encoder(tmp_path: Path) -> None:
    model = ModelConfig(model=write(tmp_path, max_source_positions=1500, num_mel_bins=80, **SMALL))
    found = footprint_of(model, LoadConfig(load_format="dummy"))
    assert found.weights_bytes == found.spec.num_parameters * 4
    assert found.encoder_bytes >= 3000 * (80 + 2 * 768) * 4
    assert found.fixed_bytes == found.weights_bytes + found.activation_bytes + found.encoder_bytes
    assert found.request_bytes(16) == (1 + 94) * 16 * 12 * 2 * 768 * 4
    assert dict(plan_of(write(tmp_path)).ledger)["encoder"] > 0


@pytest.mark.parametrize("json_wanted", [False, True])
def test_octavo_plan_shows_the_group(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], json_wanted: bool
) -> None:
    folder = write(tmp_path, max_source_positions=1500, num_mel_bins=80, max_target_positions=448, **SMALL)
    flags = ["--json"] if json_wanted else []
    assert main(["plan", str(folder), "--memory", "8GiB", *flags]) == 0
    out = capsys.readouterr().out
    if not json_wanted:
        assert "12 layers, 12 heads, 80 x 3,000 features of audio to 1,500 positions" in " ".join(out.split())
        assert "16 encoder positions of 12 layers" in out
        assert "the 1,500 positions of one input keep" in out
        return
    cross = json.loads(out)["groups"][1]
    assert (cross["kind"], cross["encoder_len"]) == ("cross", 1500)
    assert cross["bytes_held"] == json.loads(out)["bytes"]["one_input"] == 94 * cross["block_bytes"]


def test_a_simulation_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(write(tmp_path)), "--device", "h100"]) == 2
    assert "simulate a model without an encoder" in capsys.readouterr().err


def test_a_gpu_s_ledger_has_the_encoder(tmp_path: Path) -> None:
    model, load = ModelConfig(model=write(tmp_path)), LoadConfig(load_format="dummy")
    plan = resolve(model, load, device=DeviceConfig(device="cuda"), available_memory=8 << 30)
    assert (plan.device, plan.encoder_len) == ("cuda", 50)
    assert dict(plan.ledger)["encoder"] == plan.footprint.encoder_bytes > 0
