"""The sampler, argmax and logprobs through Python."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo import ops


@dataclass
class Batch:
    """The columns of a batch of samples, neutral until a test sets them."""

    logits: Tensor
    columns: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        rows = len(self.logits)
        floats = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "presence": 0.0, "frequency": 0.0}
        self.columns = {name: torch.full((rows,), value) for name, value in floats.items()}
        self.columns["repetition"] = torch.ones(rows)
        for name in ("top_k", "history_len", "prompt_len"):
            self.columns[name] = torch.zeros(rows, dtype=torch.int32)
        for name in ("history", "mask"):
            self.columns[name] = torch.zeros(rows, dtype=torch.uint64)
        self.columns["seed"] = torch.arange(rows).to(torch.uint64)
        self.columns["sample_index"] = torch.zeros(rows, dtype=torch.int64)
        self.columns["bias_start"] = torch.zeros(rows + 1, dtype=torch.int32)
        self.columns["bias_token"] = torch.zeros(0, dtype=torch.int32)
        self.columns["bias_value"] = torch.zeros(0)

    def set(self, **values: float) -> Batch:
        """Give every row the same value of some columns."""
        for name, value in values.items():
            self.columns[name][:] = value
        return self

    def run(self) -> Tensor:
        """Return the tokens; the logits stay as they are."""
        token = torch.empty(len(self.logits), dtype=torch.int32)
        ops.sample(token, self.logits.clone(), **self.columns)
        return token


def left_by(row: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Return the probabilities that remain in float64."""
    value, order = torch.sort(row.double() / temperature, descending=True, stable=True)
    p = value.softmax(-1)
    p[p < min_p * p[0]] = 0
    if top_k > 0:
        p[top_k:] = 0
    p /= p.sum()
    p[p.cumsum(0) - p >= top_p] = 0
    return torch.zeros_like(p).scatter_(0, order, p / p.sum())


@pytest.mark.parametrize(
    ("vocab", "temperature", "top_k", "top_p", "min_p"),
    [
        (40, 1.0, 0, 1.0, 0.0),
        (40, 0.7, 5, 1.0, 0.0),
        (40, 1.4, 0, 0.75, 0.0),
        (40, 1.0, 0, 1.0, 0.08),
        (64, 1.2, 24, 0.8, 0.02),
        (1500, 1.5, 0, 0.9, 0.0),
        (1500, 1.5, 1100, 1.0, 0.0),
    ],
)
def test_draws_follow_the_distribution(
    vocab: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    torch.manual_seed(1)
    row = torch.randn(vocab) * 2
    draws = 20000 if vocab < 100 else 6000
    batch = Batch(row.repeat(draws, 1)).set(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    count = torch.bincount(batch.run().long(), minlength=vocab).double()
    expected = left_by(row, temperature, top_k, top_p, min_p) * draws
    assert not count[expected == 0].any()
    common = expected >= 8
    chi = ((count - expected) ** 2 / expected)[common].sum().item()
    freedom = int(common.sum()) - 1
    assert chi < freedom + 4 * math.sqrt(2 * freedom + 2)  # fixed seeds: passes always or never


def test_the_same_seed_gives_the_same_token_alone_and_in_a_batch_of_64() -> None:
    torch.manual_seed(2)
    batch = Batch(torch.randn(64, 5000) * 2)
    batch.columns["seed"] = torch.randint(0, 1 << 62, (64,)).to(torch.uint64)
    batch.columns["sample_index"] = torch.arange(64)
    batch.columns["top_k"][::3] = 40
    batch.columns["top_p"][::2] = 0.9
    together = batch.run()
    names = [name for name, column in batch.columns.items() if len(column) == 64]
    for row in range(64):
        alone = Batch(batch.logits[row : row + 1])
        for name in names:
            alone.columns[name] = batch.columns[name][row : row + 1]
        assert alone.run().item() == together[row].item()


def test_successive_samples_of_one_seed_differ() -> None:
    batch = Batch(torch.zeros(100, 1000)).set(seed=7)
    batch.columns["sample_index"] = torch.arange(100)
    assert len(set(batch.run().tolist())) > 80


def test_greedy_takes_the_lowest_of_equal_ids_and_argmax_agrees() -> None:
    logits = torch.randn(5, 333).round()
    want = [int((row == row.max()).nonzero()[0]) for row in logits]
    assert Batch(logits).set(temperature=0.0).run().tolist() == want
    token = torch.empty(5, dtype=torch.int32)
    ops.argmax(token, logits)
    assert token.tolist() == want


def test_penalties_see_the_history_and_bias_comes_before_them() -> None:
    history = np.array([4, 4, 9, 2, 2, 2, 7], dtype=np.int32)
    logits = torch.zeros(1, 16)
    logits[0, [2, 4, 7, 9]] = torch.tensor([5.0, 4.9, 4.8, 4.7])
    batch = Batch(logits).set(temperature=0.0)
    batch.columns["history"] = torch.from_numpy(np.array([history.ctypes.data], dtype=np.uint64))
    batch.set(history_len=7, prompt_len=3)
    assert batch.run().item() == 2
    assert batch.set(presence=0.3).run().item() == 4  # 4 is in the prompt only
    assert batch.set(presence=0.0, frequency=0.05).run().item() == 4
    assert batch.set(frequency=0.0, repetition=2.0).run().item() == 2  # all are halved
    batch.columns["bias_token"] = torch.tensor([9, 2], dtype=torch.int32)
    batch.columns["bias_value"] = torch.tensor([3.0, -math.inf])
    batch.columns["bias_start"] = torch.tensor([0, 2], dtype=torch.int32)
    assert batch.set(repetition=1.0).run().item() == 9


def test_a_mask_allows_only_its_tokens() -> None:
    words = np.zeros(4, dtype=np.uint32)
    words[[0, 3]] = [1 << 5, 1 << 1]
    batch = Batch(torch.randn(200, 100))
    batch.columns["mask"][:] = words.ctypes.data
    assert set(batch.run().tolist()) == {5, 97}
    words[:] = 0
    assert set(batch.run().tolist()) == {-1}


def test_a_broken_row_gets_minus_one_and_no_other_does() -> None:
    logits = torch.zeros(4, 50)
    logits[1, 49] = math.nan
    logits[2] = -math.inf
    batch = Batch(logits)
    batch.columns["temperature"][3] = math.inf
    token = batch.run()
    assert token[1:].tolist() == [-1, -1, -1]
    assert token[0] >= 0


def test_wrong_columns_are_named() -> None:
    batch = Batch(torch.zeros(2, 10))
    batch.columns["top_p"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"sample: top_p has shape \[3\], need \[2\]"):
        batch.run()
    batch = Batch(torch.zeros(2, 10))
    batch.columns["seed"] = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match="sample: seed has dtype int32, need uint64"):
        batch.run()
    batch = Batch(torch.zeros(2, 10))
    batch.columns["bias_token"] = torch.tensor([10], dtype=torch.int32)
    batch.columns["bias_value"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"sample: bias_token\[0\] is 10, need 0 to 9"):
        batch.run()


def test_logprobs_equal_log_softmax_and_a_stable_sort() -> None:
    torch.manual_seed(3)
    logits = (torch.randn(3, 777) * 3).round(decimals=1)
    token = torch.tensor([5, -1, 776], dtype=torch.int32)
    ids = torch.empty(3, 9, dtype=torch.int32)
    values, rank = torch.empty(3, 9), torch.empty(3, dtype=torch.int32)
    ops.logprobs(ids, values, rank, logits, token, 8)
    logprob = logits.double().log_softmax(-1)
    for row in (0, 2):
        _, order = torch.sort(logits[row], descending=True, stable=True)
        want = [int(token[row]), *order[:8].tolist()]
        assert ids[row].tolist() == want
        torch.testing.assert_close(values[row].double(), logprob[row, want], rtol=0, atol=1e-5)
        assert rank[row] == 1 + (logits[row] > logits[row, token[row]]).sum()
    assert ids[1].tolist() == [-1] * 9
    assert values[1].isneginf().all()
    assert rank[1] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bits_are_drawn_from_as_the_same_numbers_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    narrow = (torch.randn(64, 500) * 2).to(dtype)
    batch = Batch(narrow.float()).set(temperature=0.9, top_p=0.9, top_k=40)
    batch.columns["temperature"][::4] = 0.0
    batch.columns["bias_start"] = torch.arange(65, dtype=torch.int32)
    batch.columns["bias_token"] = torch.full((64,), 7, dtype=torch.int32)
    batch.columns["bias_value"] = torch.full((64,), 3.001)  # would be rounded in the logits' own dtype
    token, scratch, before = torch.empty(64, dtype=torch.int32), torch.empty(64, 500), narrow.clone()
    ops.sample(token, narrow, **batch.columns, scratch=scratch)
    assert torch.equal(token, batch.run())
    assert torch.equal(narrow, before)
    ops.argmax(token, narrow)
    assert torch.equal(token, narrow.float().argmax(-1).int())
    with pytest.raises(ValueError, match="scratch is missing"):
        ops.sample(token, narrow, **batch.columns)
    with pytest.raises(ValueError, match="scratch"):
        ops.sample(token, narrow, **batch.columns, scratch=scratch[:, 1:])
