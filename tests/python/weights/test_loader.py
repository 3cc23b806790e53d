"""Every tensor lands in its parameter, and every way in which a folder can be wrong has its own error."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.errors import WeightsError
from octavo.hf_config import load_model_spec
from octavo.layers.linear import FusedLinear
from octavo.models.registry import build
from octavo.weights.checkpoint import INDEX_NAME
from octavo.weights.loader import load_weights

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny_folder: Any, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may damage."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))


def load(folder: Path, **changes: Any) -> torch.nn.Module:
    spec = dataclasses.replace(load_model_spec(folder), **changes)
    model = build(spec)
    load_weights(model, folder, spec)
    return model


def rewrite(folder: Path, change: Callable[[Tensors], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def shard(folder: Path) -> dict[str, str]:
    """Split model.safetensors in two and return the index's weight_map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    placed = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(placed.values()):
        save_file({name: tensors[name] for name in tensors if placed[name] == file}, folder / file)
    write_index(folder, placed)
    return placed


def write_index(folder: Path, placed: Any) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def test_every_tensor_lands_in_its_parameter(tiny_folder: Any, model_name: str) -> None:
    spec = load_model_spec(tiny_folder(model_name))
    stored = load_file(tiny_folder(model_name) / "model.safetensors")
    saved = {spec.name_of(name) or "": tensor for name, tensor in stored.items()}
    model = load(tiny_folder(model_name))
    parts = {path: module.parts for path, module in model.named_modules() if isinstance(module, FusedLinear)}
    read: set[str] = set()
    for path, module in model.named_modules():
        spellings: Any = getattr(module, "spellings", lambda _: [{}])
        each = next(names for names in spellings(path) if set(names) <= set(saved))
        assert all(torch.equal(part.view, saved[name].view(part.view.shape)) for name, part in each.items())
        read.update(each)
    for name, weight in model.named_parameters():
        path, _, kind = name.rpartition(".")
        if hasattr(model.get_submodule(path), "spellings"):
            continue
        beside = path.rpartition(".")[0]
        sources = [f"{beside}.{part}.{kind}" for part, _ in parts[path]] if path in parts else [name]
        assert torch.equal(weight, torch.cat([saved[source] for source in sources]))
        read.update(sources)
    assert read == set(saved)


def test_a_tied_head_is_the_embedding_itself(tiny_folder: Any) -> None:
    model: Any = load(tiny_folder("qwen2"))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tied_head_that_was_saved_too_is_ignored(tiny_folder: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder("qwen2"), tmp_path / "model"))
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    model: Any = load(folder)
    assert torch.equal(
        model.lm_head.weight, load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    )


def test_weights_are_converted_to_the_dtype_of_the_spec(folder: Path) -> None:
    saved = load_file(folder / "model.safetensors")
    loaded = load(folder, dtype="bfloat16").state_dict()
    assert all(weight.dtype == torch.bfloat16 for weight in loaded.values())
    assert torch.equal(loaded["lm_head.weight"], saved["lm_head.weight"].bfloat16())


def test_shards_are_found_through_the_index(folder: Path) -> None:
    whole = load(folder).state_dict()
    shard(folder)
    sharded = load(folder).state_dict()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_buffers_of_old_checkpoints_are_ignored(folder: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda t: t.update({name: torch.zeros(16)}))
    load(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match="model-00002-of-00002.safetensors is missing"):
        load(folder)


def test_an_index_that_places_a_tensor_elsewhere_is_refused(folder: Path) -> None:
    placed = shard(folder)
    write_index(folder, {**placed, "lm_head.weight": "model-00002-of-00002.safetensors"})
    with pytest.raises(WeightsError, match=r"places 'lm_head.weight' in model-00002"):
        load(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "weights.bin", 3, None])
def test_an_index_cannot_point_out_of_its_folder(folder: Path, name: Any) -> None:
    write_index(folder, {"lm_head.weight": name})
    with pytest.raises(WeightsError, match="weight_map"):
        load(folder)


@pytest.mark.parametrize("placed", [None, {}, [], "model.safetensors"])
def test_an_index_without_names_is_refused(folder: Path, placed: Any) -> None:
    write_index(folder, placed)
    with pytest.raises(WeightsError, match="weight_map"):
        load(folder)


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"lm_head.weight": torch.zeros(512, 128)}, folder / "b.safetensors")
    with pytest.raises(WeightsError, match="'lm_head.weight' is in both"):
        load(folder)


def test_a_folder_without_weights_says_what_to_do(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="load_format='dummy'"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match="pytorch_model.bin is a pickle"):
        load(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="truncated"):
        load(folder)


def test_missing_tensors_are_named(folder: Path) -> None:
    rewrite(folder, lambda t: t.pop("model.layers.1.self_attn.k_proj.weight"))
    with pytest.raises(WeightsError, match=r"missing: model\.layers\.1\.self_attn\.k_proj\.weight"):
        load(folder)


def test_a_missing_head_hints_at_tying(folder: Path) -> None:
    rewrite(folder, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(WeightsError, match="tie_word_embeddings"):
        load(folder)


def test_tensors_that_are_left_over_are_named(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(128)}))
    with pytest.raises(
        WeightsError, match=r"not part of the model: model\.layers\.0\.self_attn\.q_proj\.bias"
    ):
        load(folder)


def test_misshaped_tensors_are_named_with_both_shapes(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"model.norm.weight": torch.ones(64)}))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight is \[64\], expected \[128\]"):
        load(folder)


def test_a_part_that_is_misshaped_is_named_by_its_own_name(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.ones(191, 128)}))
    with pytest.raises(WeightsError, match=r"up_proj\.weight is \[191, 128\], expected \[192, 128\]"):
        load(folder)


def test_a_tensor_of_integers_is_refused(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"model.norm.weight": torch.ones(128, dtype=torch.int8)}))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight is I8"):
        load(folder)


def test_all_that_is_wrong_is_said_at_once_and_bounded(folder: Path) -> None:
    def ruin(tensors: Tensors) -> None:
        for name in [name for name in tensors if "layers" in name]:
            tensors[f"old.{name}"] = tensors.pop(name)

    rewrite(folder, ruin)
    with pytest.raises(WeightsError, match=r"missing: .* and 19 more; not part of the model: .* and 19 more"):
        load(folder)


def test_nothing_is_loaded_when_anything_is_wrong(folder: Path) -> None:
    rewrite(folder, lambda t: t.pop("model.norm.weight"))
    spec = load_model_spec(folder)
    model = build(spec)
    for weight in model.parameters():
        weight.fill_(7)
    with pytest.raises(WeightsError):
        load_weights(model, folder, spec)
    assert all(bool((weight == 7).all()) for weight in model.parameters())


def test_dummy_weights_need_no_file_and_follow_their_seed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    spec = load_model_spec(folder)
    models = [build(spec) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2)):
        load_weights(model, folder, spec, load_format="dummy", seed=seed)
    first, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert all(bool(torch.isfinite(weight).all()) for weight in first.values())
