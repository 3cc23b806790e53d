"""Whisper's logits equal transformers' in float32, however prompts are cut and rows are mixed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from octavo import ops
from octavo.hf_config import load_model_spec
from octavo.layers.attention import AttentionContext, EncodedRows
from octavo.media.log_mel import LogMel, load_log_mel
from octavo.models.registry import build
from octavo.weights.loader import load_weights

BLOCK_SIZE = 16
TOLERANCE = 5e-5
ROWS = 3


class Stepper:
    """The model with a pool of its own; blocks of both groups are scattered over it."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.spec = spec = dataclasses.replace(load_model_spec(folder), **changes)
        assert spec.encoder is not None
        self.model: Any = build(spec)
        load_weights(self.model, folder, spec)
        self.extract: LogMel = load_log_mel(folder, spec.encoder)
        own, cross = -(-spec.max_position // BLOCK_SIZE), -(-spec.encoder.length // BLOCK_SIZE)
        count = ROWS * (own + cross) + 1
        blocks = (torch.randperm(count - 1, generator=torch.Generator().manual_seed(0)) + 1).int()
        tables = [blocks[: ROWS * own].view(ROWS, own), blocks[ROWS * own :].view(ROWS, cross)]
        shape = (count, 2, spec.num_kv_heads, BLOCK_SIZE, spec.head_dim)
        caches = [torch.full(shape, float("nan"), dtype=getattr(torch, spec.dtype)) for _ in range(6)]
        self.context = AttentionContext(caches, tables, [0, 0, 0, 1, 1, 1])
        self.lengths = [0] * ROWS
        self.heard = [0] * ROWS

    @torch.inference_mode()
    def hear(self, row: int, samples: Any) -> torch.Tensor:
        encoded: torch.Tensor = self.model.encode(torch.from_numpy(self.extract(samples)))
        self.heard[row] = len(encoded)
        slots = self._slots(1, torch.arange(len(encoded)), [row], [len(encoded)])
        self.model.store(encoded, slots, self.context)
        return encoded

    @torch.inference_mode()
    def step(self, tokens: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        rows, sizes = list(tokens), [len(ids) for ids in tokens.values()]
        parts = [torch.arange(self.lengths[row], self.lengths[row] + size) for row, size in zip(rows, sizes)]
        position = torch.cat(parts)
        for row, size in zip(rows, sizes):
            self.lengths[row] += size
        context = self.context
        context.slots = [self._slots(0, position, rows, sizes)]
        context.query_start = torch.tensor([0, *sizes]).cumsum(0).int()
        context.row_slot = torch.tensor(rows, dtype=torch.int32)
        context.seq_len = torch.tensor([self.lengths[row] for row in rows], dtype=torch.int32)
        each = [row for row, size in zip(rows, sizes) for _ in range(size)]
        context.encoded = EncodedRows(
            torch.tensor(each, dtype=torch.int32),
            torch.arange(len(each) + 1, dtype=torch.int32),
            torch.tensor([self.heard[row] for row in each], dtype=torch.int32),
        )
        flat = torch.tensor([token for ids in tokens.values() for token in ids], dtype=torch.int32)
        logits = self.model.logits(self.model.forward(flat, position.int(), context))
        return dict(zip(rows, logits.split(sizes)))

    def _slots(self, group: int, position: torch.Tensor, rows: list[int], sizes: list[int]) -> torch.Tensor:
        slots = torch.empty(len(position), dtype=torch.int64)
        start = torch.tensor([0, *sizes]).cumsum(0).int()
        table = self.context.block_tables[group]
        row_slot = torch.tensor(rows, dtype=torch.int32)
        ops.slot_mapping(slots, position.int(), start, row_slot, table, BLOCK_SIZE)
        return slots


@torch.inference_mode()
def expected(model: Any, stepper: Stepper, samples: Any, ids: list[int]) -> torch.Tensor:
    features = torch.from_numpy(stepper.extract(samples))[None]
    logits: torch.Tensor = model(features, decoder_input_ids=torch.tensor([ids])).logits[0]
    return logits


def prompt(count: int, seed: int) -> list[int]:
    return [2, *tiny_models.random_prompts(1, low=count - 1, high=count - 1, seed=seed)[0]]


@pytest.mark.parametrize("chunks", [[60], [1] * 60, [16, 16, 28], [3, 1, 1, 37, 18]])
def test_a_transcript_in_any_chunks(whisper_folder: Path, whisper: Any, chunks: list[int]) -> None:
    stepper, sound, ids = Stepper(whisper_folder), tiny_models.sounds(1, seed=4)[0], prompt(60, 1)
    stepper.hear(1, sound)
    parts, first = [], 0
    for size in chunks:
        parts.append(stepper.step({1: ids[first : first + size]})[1])
        first += size
    got, want = torch.cat(parts), expected(whisper, stepper, sound, ids)
    assert got.dtype == torch.float32
    assert (got - want).abs().max().item() < TOLERANCE


def test_rows_hear_their_own_audio(whisper_folder: Path, whisper: Any) -> None:
    stepper, sounds = Stepper(whisper_folder), tiny_models.sounds(3, seed=5)
    ids = [prompt(20, seed) for seed in (7, 7, 8)]  # two of the prompts are the same
    for row in (2, 0, 1):
        stepper.hear(row, sounds[row])
    first = stepper.step({1: ids[1][:1], 0: ids[0][:15]})
    second = stepper.step({0: ids[0][15:], 2: ids[2][:19], 1: ids[1][1:]})
    third = stepper.step({2: ids[2][19:]})
    got = [torch.cat([step[row] for step in (first, second, third) if row in step]) for row in range(3)]
    for row in range(3):
        want = expected(whisper, stepper, sounds[row], ids[row])
        assert (got[row] - want).abs().max().item() < TOLERANCE
    assert (got[0] - got[1]).abs().max().item() > 0.1  # or the audio would not matter


def test_a_row_without_audio_attends_to_nothing(whisper_folder: Path) -> None:
    logits = Stepper(whisper_folder).step({0: [2, 9, 11]})[0]
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_logits_stay_near_float32(whisper_folder: Path, whisper: Any, dtype: str) -> None:
    stepper, sound, ids = (
        Stepper(whisper_folder, dtype=dtype),
        tiny_models.sounds(1, seed=4)[0],
        prompt(60, 1),
    )
    stepper.hear(0, sound)
    want = expected(whisper, stepper, sound, ids)
    error = (stepper.step({0: ids})[0] - want).abs() / want.std()
    scale = 1.0 if dtype == "bfloat16" else 1 / 8
    assert error.mean().item() < 0.04 * scale
    assert error.max().item() < 0.30 * scale


def test_every_tensor_lands_in_its_parameter(whisper_folder: Path, whisper: Any) -> None:
    """The loader refuses what is missing or left over; what it joins is shown to be joined in order."""
    from safetensors.torch import load_file

    stored = load_file(whisper_folder / "model.safetensors")
    model = Stepper(whisper_folder).model
    held = dict(model.named_parameters())
    assert (
        sum(weight.numel() for weight in stored.values())
        == sum(weight.numel() for name, weight in held.items()) - (2 + 2 * 3) * 64
    )  # biases of keys, which no checkpoint has and which are zero
    for name in ("model.decoder.layers.2.self_attn.qkv_proj", "model.encoder.layers.1.self_attn.qkv_proj"):
        beside = name.rpartition(".")[0]
        zero = torch.zeros(64)
        parts = [stored[f"{beside}.q_proj.bias"], zero, stored[f"{beside}.v_proj.bias"]]
        assert torch.equal(held[f"{name}.bias"], torch.cat(parts))
        rows = [stored[f"{beside}.{part}_proj.weight"] for part in "qkv"]
        assert torch.equal(held[f"{name}.weight"], torch.cat(rows))


def test_an_output_projection_that_was_saved_too_is_the_embedding(
    whisper_folder: Path, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(whisper_folder, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    model = Stepper(folder).model
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
