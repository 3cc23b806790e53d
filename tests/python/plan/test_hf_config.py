"""config.json, in both generations of transformers' spelling, becomes a ModelSpec or a clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from octavo.errors import ModelError
from octavo.hf_config import ModelSpec, load_model_spec

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
}


def spec_of(folder: Path, generation: dict[str, Any] | None = None, **changes: Any) -> ModelSpec:
    config = {key: value for key, value in {**BASE, **changes}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return load_model_spec(folder)


def test_the_spec_of_each_tiny_model_is_what_was_saved(tiny_folder: Any, model_name: str) -> None:
    config = tiny_models.config_of(model_name)
    spec = load_model_spec(tiny_folder(model_name))
    assert spec.architecture.removesuffix("ForCausalLM").lower() == config.model_type.replace(
        "_text", ""
    ).replace("_", "")
    dense = getattr(config, "intermediate_size_mlp", config.intermediate_size)
    dense = getattr(config, "shared_intermediate_size", dense)
    assert (spec.hidden_size, spec.intermediate_size) == (config.hidden_size, dense)
    assert (spec.num_heads, spec.num_kv_heads) == (config.num_attention_heads, config.num_key_value_heads)
    assert spec.head_dim == 32
    assert spec.tie_embeddings == config.tie_word_embeddings
    assert spec.attention_bias == (config.model_type in ("qwen2", "gpt_oss"))
    assert spec.qk_norm == (model_name in ("qwen3", "gemma3", "qwen3-moe"))
    types = getattr(config, "layer_types", None) or [None] * config.num_hidden_layers
    always = types[0] is None and getattr(config, "sliding_window", None) is not None
    windows = {"sliding_attention": 24, "chunked_attention": 40, None: 24 if always else 0}
    assert spec.layer_windows == tuple(windows.get(name, 0) for name in types)
    kinds = {"llama": "llama3", "gemma3": "linear"} | dict.fromkeys(
        ("gpt-oss", "deepseek-v2", "deepseek-v3"), "yarn"
    )
    assert spec.rope.kind == kinds.get(model_name, "default")
    assert spec.dtype == "float32"
    assert spec.eos_token_ids == (3,)


def test_the_number_of_parameters_is_transformers(reference: Any, tiny_folder: Any, model_name: str) -> None:
    spec = load_model_spec(tiny_folder(model_name))
    model = reference(model_name)
    weights = [*model.parameters(), *(b for name, b in model.named_buffers() if "correction" in name)]
    assert spec.num_parameters == sum(weight.numel() for weight in weights)


def test_both_spellings_of_rope_scaling_give_the_same_spec(tmp_path: Path) -> None:
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 = {"rope_type": "llama3", **llama3, "original_max_position_embeddings": 256}
    new = spec_of(tmp_path, rope_parameters={**llama3, "rope_theta": 5e5})
    old = spec_of(tmp_path, rope_scaling=llama3, rope_theta=5e5)
    assert new.rope == old.rope
    assert (new.rope.theta, new.rope.original_max_position) == (5e5, 256)


def test_the_oldest_spelling_says_type(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, rope_scaling={"type": "linear", "factor": 4.0})
    assert (spec.rope.kind, spec.rope.factor, spec.context_limit) == ("linear", 4.0, 4096)


def test_yarn_may_leave_its_factor_to_the_two_lengths(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, rope_scaling={"rope_type": "yarn", "original_max_position_embeddings": 256})
    assert (spec.rope.factor, spec.context_limit) == (4.0, 1024)


def test_a_partial_rotary_factor_rotates_part_of_a_head(tmp_path: Path) -> None:
    assert spec_of(tmp_path, partial_rotary_factor=0.5).rope.rotary_dim == 8


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 8}, (8, 8, 8, 8)),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, (0, 0, 0, 0)),
        ({"architectures": ["MistralForCausalLM"]}, (4096,) * 4),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 8}, (0, 0, 0, 0)),
        (
            {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 8, "use_sliding_window": True}
            | {"max_window_layers": 3},
            (0, 0, 0, 8),
        ),
        (
            {"architectures": ["Qwen3ForCausalLM"], "sliding_window": 8, "use_sliding_window": True}
            | {"layer_types": ["sliding_attention", "full_attention"] * 2},
            (8, 0, 8, 0),
        ),
        ({"sliding_window": 8}, (0, 0, 0, 0)),
    ],
)
def test_windows_follow_each_architectures_rule(tmp_path: Path, changes: Any, windows: Any) -> None:
    assert spec_of(tmp_path, **changes).layer_windows == windows


def test_end_tokens_of_both_files_are_merged(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {"eos_token_id": [7, 9]}, eos_token_id=9, bos_token_id=1)
    assert (spec.eos_token_ids, spec.bos_token_id) == ((7, 9), 1)


@pytest.mark.parametrize(("key", "dtype"), [("torch_dtype", "bfloat16"), ("dtype", "float16")])
def test_the_dtype_has_two_names(tmp_path: Path, key: str, dtype: str) -> None:
    assert spec_of(tmp_path, **{key: dtype}).dtype == dtype


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="config.json is missing"):
        load_model_spec(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "\x00"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model_spec(tmp_path)


def test_an_unknown_architecture_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Qwen3ForCausalLM.*did you mean 'Qwen2ForCausalLM'"):
        spec_of(tmp_path, architectures=["Qwen2ForCausalML"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", None),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", []),
        ("hidden_size", 0),
        ("hidden_size", "64"),
        ("hidden_size", "absent"),
        ("hidden_size", 66),
        ("num_attention_heads", 0),
        ("num_attention_heads", -4),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", True),
        ("head_dim", 15),
        ("num_hidden_layers", 2**40),
        ("vocab_size", -1),
        ("vocab_size", 1.5),
        ("intermediate_size", None),
        ("max_position_embeddings", 0),
        ("rms_norm_eps", 0.0),
        ("rms_norm_eps", float("nan")),
        ("hidden_act", "relu"),
        ("hidden_act", ["silu"]),
        ("tie_word_embeddings", "yes"),
        ("torch_dtype", "int8"),
        ("torch_dtype", {}),
        ("eos_token_id", 512),
        ("eos_token_id", [1, "2"]),
        ("rope_theta", -1.0),
        ("rope_scaling", "llama3"),
        ("rope_parameters", {"full_attention": {"rope_type": "default"}}),
        ("partial_rotary_factor", 1.5),
        ("quantization_config", "fp8"),
    ],
)
def test_nonsense_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"{key.removeprefix('torch_')}=.* is not valid"):
        spec_of(tmp_path, **{key: value})


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": ["linear"], "factor": 2.0},
        {"rope_type": "longrope", "factor": 2.0},
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": 0.5},
        {"rope_type": "dynamic", "factor": -1},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": float("inf")},
    ],
)
def test_nonsense_in_rope_scaling_is_refused(tmp_path: Path, scaling: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="is not valid"):
        spec_of(tmp_path, rope_scaling=scaling)


@pytest.mark.parametrize("types", [3, ["full_attention"], ["full_attention"] * 3 + [{}], ["chunked"] * 4])
def test_nonsense_in_layer_types_is_refused(tmp_path: Path, types: Any) -> None:
    qwen = {"architectures": ["Qwen3ForCausalLM"], "sliding_window": 8, "use_sliding_window": True}
    with pytest.raises(ModelError, match="layer_types=.*num_hidden_layers"):
        spec_of(tmp_path, **qwen, layer_types=types)
