"""What config.json and the user may say about quantized weights, and the bytes a plan counts for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fp8_checkpoints import FORMATS, compressed, save_fp8, set_config

from octavo.config import LoadConfig, ModelConfig
from octavo.errors import ModelError
from octavo.hf.quantization import Quantization
from octavo.hf_config import load_model_spec
from octavo.models.registry import build
from octavo.plan import footprint_of


@pytest.fixture
def folder(tiny_folder: Any, tmp_path: Path) -> Path:
    """A folder with the config.json of the tiny Llama, to be changed."""
    shutil.copy(tiny_folder("llama") / "config.json", tmp_path)
    return tmp_path


def read(folder: Path, said: Any, wanted: str | None = None) -> Quantization:
    set_config(folder, said)
    found = load_model_spec(folder, quantization=wanted).quantization
    assert found is not None
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_says_how_inputs_are_scaled(folder: Path, form: str) -> None:
    said, _, _, static = FORMATS[form]
    found = read(folder, said)
    assert (found.scheme, found.stored, found.static) == ("fp8", True, static)
    assert found.method == said["quant_method"] == read(folder, said, found.method).method
    assert not found.converts("lm_head")
    assert not found.converts("model.embed_tokens")
    assert found.converts("model.layers.0.mlp.up_proj")


BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
FOUR_BITS = compressed("channel")
FOUR_BITS["config_groups"] = json.loads(json.dumps(FOUR_BITS["config_groups"]))
FOUR_BITS["config_groups"]["group_0"]["weights"]["num_bits"] = 4
WEIGHTS_ONLY = compressed("channel")
WEIGHTS_ONLY["config_groups"]["group_0"]["input_activations"] = None


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"quant_method": "awq"}, r"quant_method='awq' is not valid: supported are fp8, compressed-tensors;"),
        ({"quant_method": "gptq", "bits": 4}, r"quant_method='gptq'"),
        ({"quant_method": "mxfp4"}, r"quant_method='mxfp4'"),
        ({"bits": 4}, r"quant_method=None"),
        ("fp8", r"quantization_config='fp8' is not valid: an object is expected"),
        (BLOCKS, r'weight_block_size=\[128, 128\] is not valid: .* not blocks: .* quantization="fp8"'),
        ({"quant_method": "fp8", "activation_scheme": "token"}, r"activation_scheme='token'.*'dynamic'"),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, r"modules_to_not_convert='lm_head'"),
        (compressed("group"), r"config_groups\.group_0\.weights\.strategy='group'.*'channel' or 'tensor'"),
        (compressed("channel", format="pack-quantized"), r"format='pack-quantized'.*'float-quantized'"),
        (compressed("channel", kv_cache_scheme={"num_bits": 8}), r"kv_cache_scheme.type=None"),
        (compressed("channel", config_groups={}), r"config_groups={}"),
        (compressed("channel", ignore=["re:(.*)*x"]), r"ignore=\['re:\(\.\*\)\*x'\].* repetitions"),
        (compressed("channel", ignore=["re:.*.*.*.*x"]), r"ignore=.* repetitions"),
        (compressed("channel", ignore=["re:["]), r"ignore=.* is no pattern"),
        (FOUR_BITS, r"group_0\.weights\.num_bits=4 is not valid: 8 is supported"),
        (WEIGHTS_ONLY, r"group_0\.input_activations=None is not valid"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(folder: Path, said: Any, message: str) -> None:
    set_config(folder, said)
    with pytest.raises(ModelError, match=rf"quantization_config\S*{message}" if said != "fp8" else message):
        load_model_spec(folder)


def test_a_choice_repeats_what_the_checkpoint_is_or_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="quantization='compressed-tensors' is not valid: .* loaded as fp8"):
        load_model_spec(folder, quantization="compressed-tensors")
    set_config(folder, compressed("channel"))
    with pytest.raises(ValueError, match="quantization='fp8' is not valid: .* is compressed-tensors"):
        load_model_spec(folder, quantization="fp8")
    with pytest.raises(ValueError, match="quantization='awq' is not valid: use one of fp8"):
        ModelConfig(model=folder, quantization="awq")


def test_experts_are_not_quantized(tiny_folder: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantization='fp8' is not valid: leave it out: mixtures"):
        load_model_spec(tiny_folder("mixtral"), quantization="fp8")
    shutil.copy(tiny_folder("mixtral") / "config.json", tmp_path)
    set_config(tmp_path, {"quant_method": "fp8"})
    with pytest.raises(ModelError, match="quant_method='fp8' is not valid: mixtures of experts"):
        load_model_spec(tmp_path)


@pytest.mark.parametrize(
    ("entry", "module", "ignored"),
    [
        ("model.layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj", True),
        ("model.layers.1.mlp", "model.layers.1.mlp.up_proj", True),
        ("model.layers.1", "model.layers.10.mlp.up_proj", False),
        ("up_proj", "model.layers.1.mlp.up_proj", True),
        ("proj", "model.layers.1.mlp.up_proj", False),
        ("language_model.model.layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj", True),
        ("re:.*mlp.*", "model.layers.1.mlp.up_proj", True),
        ("re:mlp", "model.layers.1.mlp.up_proj", False),
        (r"re:model\.layers\.1\..*", "model.layers.1.mlp.up_proj", True),
    ],
)
def test_exceptions_are_names_their_ends_or_patterns(entry: str, module: str, ignored: bool) -> None:
    found = Quantization(method="fp8", scheme="fp8", stored=True, ignored=(entry,))
    assert found.converts(module) is not ignored


def held(folder: Path, **model: Any) -> int:
    """The bytes of a built model's parameters."""
    spec = load_model_spec(folder, dtype="bfloat16", **model)
    return sum(p.numel() * p.element_size() for p in build(spec).parameters())


@pytest.mark.parametrize("name", ["llama", "qwen3", "bamba", "granite-hybrid", "gemma3"])
@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_a_plan_counts_the_bytes_that_will_be_held(tiny_folder: Any, name: str, load_format: str) -> None:
    config = ModelConfig(model=tiny_folder(name), dtype="bfloat16", quantization="fp8")
    footprint = footprint_of(config, LoadConfig(load_format=load_format))
    assert footprint.weights_bytes == held(tiny_folder(name), quantization="fp8")
    assert footprint.weights_bytes < 0.85 * held(tiny_folder(name))


@pytest.mark.parametrize("form", FORMATS)
def test_a_plan_counts_what_a_checkpoint_ignores(tiny_folder: Any, tmp_path: Path, form: str) -> None:
    ignored = ("model.layers.1.mlp.down_proj",)
    folder = save_fp8(tiny_folder("llama"), tmp_path / "fp8", form, ignored=ignored)
    for load_format in ("auto", "dummy"):
        config = ModelConfig(model=folder, dtype="bfloat16")
        assert footprint_of(config, LoadConfig(load_format=load_format)).weights_bytes == held(folder)
