"""Checkpoints, configurations and tokenizers on disks that fail: the k-th call, for every k."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from failing import Failing, fail_each
from safetensors.torch import load_file, save_file

from octavo.errors import ModelError, WeightsError
from octavo.hf_config import load_model_spec
from octavo.models.registry import build
from octavo.text.tokenizer import load_tokenizer
from octavo.weights.checkpoint import INDEX_NAME, open_checkpoint
from octavo.weights.device_copy import FileRows, copy_to_device
from octavo.weights.loader import load_weights
from octavo.weights.safetensors_file import SafetensorsFile


@pytest.fixture
def folder(tiny_folder: Any, tmp_path: Path) -> Path:
    """The tiny Llama in two shards."""
    folder = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    placed = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(placed.values()):
        save_file({name: tensors[name] for name in tensors if placed[name] == file}, folder / file)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def test_whichever_call_on_a_checkpoint_fails_its_file_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_model_spec(folder)
    model = build(spec)
    failing = Failing(monkeypatch, folder)
    answered = fail_each(failing, lambda: load_weights(model, folder, spec), ModelError, str(folder))
    # Index, two shards: looked at, opened, measured, read twice, mapped; a hint may fail unseen.
    assert answered > 80


def test_whichever_read_of_a_device_copy_fails_its_file_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(monkeypatch, folder)

    def copy() -> None:
        with open_checkpoint(folder) as checkpoint:
            rows = [
                FileRows(torch.empty(info.shape), checkpoint.files[name], info)
                for name, info in checkpoint.tensors.items()
            ]
            copy_to_device(rows, threads=1)

    answered = fail_each(failing, copy, ModelError, str(folder), codes=(errno.EIO,))
    assert answered > 30


def test_whichever_call_on_a_configuration_fails_its_file_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(monkeypatch, folder)
    answered = fail_each(failing, lambda: load_model_spec(folder), ModelError, str(folder))
    assert answered > 8


def test_whichever_call_on_a_tokenizer_fails_its_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.save_tokenizer(tmp_path / "tokenizer")
    failing = Failing(monkeypatch, folder)
    known = (ModelError, FileNotFoundError)
    codes = (errno.EIO, errno.EMFILE, errno.ENOMEM)
    answered = fail_each(failing, lambda: load_tokenizer(folder), known, str(folder), codes)
    assert answered > 8


def test_an_error_of_the_disk_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(monkeypatch, folder)
    failing.arm(3, errno.EMFILE, sticky=True)
    with pytest.raises(ModelError, match=r"raise the limit of open files \(ulimit -n\)"):
        open_checkpoint(folder)
    failing.disarm()


@pytest.mark.parametrize("size", [0, 4, 8, 300])
def test_a_shard_that_shrinks_after_it_was_opened_is_named(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"t": torch.zeros(64, 64)}, path)
    with SafetensorsFile(path) as file:
        path.write_bytes(b"x" * size)
        with pytest.raises(WeightsError, match=r"model\.safetensors (shrank|cannot be read)"):
            file.data(file.tensors["t"])


def test_a_template_that_is_damaged_is_named(tmp_path: Path) -> None:
    folder = tiny_models.save_tokenizer(tmp_path / "tokenizer")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"chat_template\.jinja is not UTF-8"):
        load_tokenizer(folder)
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for text, what in (("{", "is not JSON"), ("[1]", "holds a JSON list")):
        (folder / "chat_template.json").write_text(text)
        with pytest.raises(ModelError, match=rf"chat_template\.json {what}"):
            load_tokenizer(folder)
