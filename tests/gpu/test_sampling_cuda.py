"""The sampler, argmax and logprobs on CUDA, beside the CPU's: the same seeds draw the same tokens."""

from __future__ import annotations

import math

import pytest
import torch
from ops.test_sampling import Batch
from torch import Tensor

from octavo import ops

VOCABULARIES = [1, 40, 1500, 32000, 128256, 151936]


def both(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the tokens of the CPU and of the device, where history and mask are copied."""
    want = batch.run()
    columns = {name: value.cuda() for name, value in batch.columns.items()}
    token = torch.full((len(batch.logits),), -7, dtype=torch.int32, device="cuda")
    ops.sample(token, batch.logits.cuda(), **columns)
    return want, token.cpu()


def logits_of(rows: int, vocab: int, spread: float = 2.0) -> Tensor:
    return torch.randn(rows, vocab) * spread


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (0, 1.0, 0.0),
        (0, 1.0, 0.05),
        (1, 1.0, 0.0),
        (50, 1.0, 0.0),
        (50, 0.9, 0.01),
        (0, 0.9, 0.0),
        (0, 0.99, 0.001),
        (1000, 0.8, 0.0),
        (20000, 1.0, 0.0),
        (20000, 0.999, 0.0),
    ],
)
def test_tokens_are_those_of_the_cpu(vocab: int, top_k: int, top_p: float, min_p: float) -> None:
    rows = 64
    batch = Batch(logits_of(rows, vocab)).set(temperature=0.9, top_k=top_k, top_p=top_p, min_p=min_p)
    want, got = both(batch)
    # A draw within rounding of the border between two tokens may fall on either side.
    assert (got != want).sum() <= 1, (got, want)
    assert ((got >= 0) & (got < vocab)).all()


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_greedy_rows_and_argmax_take_the_lowest_id_among_equals(vocab: int) -> None:
    logits = logits_of(9, vocab).round()
    want, got = both(Batch(logits).set(temperature=0.0))
    assert torch.equal(got, want)
    token = torch.empty(9, dtype=torch.int32, device="cuda")
    ops.argmax(token, logits.cuda())
    assert torch.equal(token.cpu(), want)
    zeros = torch.zeros(2, vocab, device="cuda")
    zeros[1, 0] = -0.0
    ops.argmax(token[:2], zeros)
    assert token[:2].tolist() == [0, 0]


@pytest.mark.parametrize("top_k", [3, 3000])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_ties_keep_the_lower_ids(top_k: int, top_p: float) -> None:
    want, got = both(Batch(torch.zeros(64, 20000)).set(top_k=top_k, top_p=top_p))
    assert torch.equal(got, want)
    assert int(got.max()) < math.ceil(top_k * top_p)


def test_penalties_bias_and_masks_edit_as_on_the_cpu() -> None:
    rows, vocab = 24, 40000
    batch = Batch(logits_of(rows, vocab)).set(temperature=0.0)
    batch.set(presence=0.7, frequency=0.3, repetition=1.3, history_len=3000, prompt_len=1000)
    history = torch.randint(-1, vocab // 20, (rows, 3000), dtype=torch.int32)
    allowed = torch.randint(-(2**31), 2**31 - 1, (rows, vocab // 32), dtype=torch.int64).int()
    start = torch.arange(rows + 1, dtype=torch.int32) * 5
    batch.columns["bias_start"] = start
    batch.columns["bias_token"] = torch.randint(0, 6, (rows * 5,), dtype=torch.int32)  # with repeats
    batch.columns["bias_value"] = torch.randn(rows * 5) * 9
    batch.columns["bias_value"][::7] = -math.inf
    here, there = (history, allowed), (history.cuda(), allowed.cuda())

    def addresses(tensor: Tensor) -> Tensor:
        step = tensor.stride(0) * 4
        return torch.tensor([tensor.data_ptr() + row * step for row in range(rows)], dtype=torch.uint64)

    batch.columns["history"], batch.columns["mask"] = map(addresses, here)
    want = batch.run()
    edited = batch.logits.cuda()
    columns = {name: value.cuda() for name, value in batch.columns.items()}
    columns["history"], columns["mask"] = (addresses(t).cuda() for t in there)
    token = torch.empty(rows, dtype=torch.int32, device="cuda")
    ops.sample(token, edited, **columns)
    assert torch.equal(token.cpu(), want)
    reference = batch.logits.clone()
    ops.sample(torch.empty(rows, dtype=torch.int32), reference, **batch.columns)
    assert torch.equal(edited.cpu(), reference)  # a greedy row is edited and nothing else


def test_broken_rows_get_no_token() -> None:
    logits = logits_of(6, 5000)
    logits[0, 4999] = math.nan
    logits[1] = -math.inf
    logits[2, 17] = math.inf
    batch = Batch(logits).set(top_p=0.9)
    batch.columns["temperature"][3] = -1.0
    batch.columns["repetition"][4] = 0.0
    want, got = both(batch)
    assert torch.equal(got, want)
    assert got[:5].tolist() == [-1, -1, 17, -1, -1]
    token = torch.empty(6, dtype=torch.int32, device="cuda")
    ops.argmax(token, logits.cuda())
    assert token[:3].tolist() == [-1, 0, 17]


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("k", [0, 1, 20, 1000])
@pytest.mark.parametrize("rounded", [False, True])
def test_logprobs_are_those_of_the_cpu(vocab: int, k: int, rounded: bool) -> None:
    k = min(k, vocab)
    logits = logits_of(5, vocab)
    if rounded:
        logits = logits.round()  # thousands of equals at the border
    logits[2, : vocab // 2] = -math.inf
    token = torch.randint(0, vocab, (5,), dtype=torch.int32)
    token[4] = -1
    results = []
    for device in ("cpu", "cuda"):
        ids = torch.full((5, k + 1), -7, dtype=torch.int32, device=device)
        values = torch.full((5, k + 1), math.nan, device=device)
        rank = torch.full((5,), -7, dtype=torch.int32, device=device)
        ops.logprobs(ids, values, rank, logits.to(device), token.to(device), k)
        results.append((ids.cpu(), values.cpu(), rank.cpu()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][2], results[1][2])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-6, atol=1e-5)


def test_a_row_alone_draws_what_it_draws_in_a_batch_and_in_a_graph() -> None:
    batch = Batch(logits_of(200, 32000)).set(top_p=0.95, top_k=40)
    columns = {name: value.cuda() for name, value in batch.columns.items()}
    logits, work = batch.logits.cuda(), batch.logits.cuda()
    token = torch.empty(200, dtype=torch.int32, device="cuda")
    ops.sample(token, work, **columns)
    together = token.tolist()
    alone = []
    for row in range(0, 200, 20):
        one = {name: c[row : row + 1] for name, c in columns.items() if not name.startswith("bias")}
        one |= {"bias_start": columns["bias_start"][:2]}
        one |= {name: columns[name] for name in ("bias_token", "bias_value")}
        ops.sample(token[:1], logits[row : row + 1].clone(), **one)
        alone.append(int(token[0]))
    assert alone == together[::20]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work.copy_(logits)
        ops.sample(token, work, **columns)
    for _ in range(3):
        token.fill_(-7)
        graph.replay()
        assert token.tolist() == together


def test_what_the_device_cannot_do_is_refused() -> None:
    logits = torch.zeros(1, 4000, device="cuda")
    ids, values = torch.empty(1, 2001, dtype=torch.int32), torch.empty(1, 2001)
    with pytest.raises(ValueError, match="k is 2000, need at most 1048576 and 1024 on CUDA"):
        token = torch.zeros(1, dtype=torch.int32, device="cuda")
        ops.logprobs(ids.cuda(), values.cuda(), token.clone(), logits, token, 2000)
