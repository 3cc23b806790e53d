"""Times the CUDA ops one by one, in graphs, over memory that rotates beyond the L2 cache.

    PYTHONPATH=python python bench/ops_cuda.py [rows] [sample] [linear] [small]

Row ops are given as a share of what a copy moves; products and argmax beside torch. Microseconds are medians
of graph replays, each of many calls.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch

from octavo import ops

ROTATED_BYTES = 400e6  # several times the L2 of an H200
REPLAYS = 15
Call = Callable[[], object]


def time_calls(calls: Sequence[Call]) -> float:
    """Return microseconds a call: the median over replays of a graph that makes them all once."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return sorted(times)[REPLAYS // 2]


def rotating(make: Callable[[], Call], nbytes: float, most: int = 64) -> list[Call]:
    """Return calls on memory of their own, enough of them that none finds its data in L2."""
    return [make() for _ in range(min(most, max(2, int(ROTATED_BYTES / nbytes) + 1)))]


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, device="cuda")


def column(values: Sequence[int] | torch.Tensor, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.as_tensor(values, dtype=dtype, device="cuda")


def row_cases(tokens: int) -> list[tuple[str, float, Callable[[], Call]]]:
    """Return (name, bytes moved, maker) of the row ops of an 8B layer for so many tokens."""
    hidden, inner, heads, kv_heads, dim = 4096, 14336, 32, 8, 128
    weight, head_weight = random(hidden), random(dim)
    table, blocks = random(tokens, dim, dtype=torch.float32), tokens // 16 + 1
    position, slot = column(torch.arange(tokens)), column(torch.randperm(blocks * 16)[:tokens], torch.int64)

    def copy() -> Call:
        x, out = random(tokens, hidden), random(tokens, hidden)
        return lambda: out.copy_(x)

    def norm() -> Call:
        x, out = random(tokens, hidden), random(tokens, hidden)
        return lambda: ops.rms_norm(out, x, weight, 1e-6)

    def add_norm() -> Call:
        x, residual = random(tokens, hidden), random(tokens, hidden)
        return lambda: ops.add_rms_norm(x, x, residual, weight, 1e-6)

    def silu() -> Call:
        x, out = random(tokens, 2 * inner), random(tokens, inner)
        return lambda: ops.silu_mul(out, x)

    def qkv(normed: bool) -> Callable[[], Call]:
        def make() -> Call:
            q, k, v = random(tokens, heads + 2 * kv_heads, dim).split((heads, kv_heads, kv_heads), 1)
            cache = random(blocks, 2, kv_heads, 16, dim)
            norms = (head_weight, head_weight) if normed else (None, None)
            return lambda: ops.norm_rope_cache(q, k, v, position, table, cache, slot, *norms)

        return make

    def rope() -> Call:
        q, k = random(tokens, heads + kv_heads, dim).split((heads, kv_heads), 1)
        return lambda: ops.rope(q, k, position, table, False)

    def cache_write() -> Call:
        k, v = random(tokens, 2 * kv_heads, dim).split((kv_heads, kv_heads), 1)
        cache = random(blocks, 2, kv_heads, 16, dim)
        return lambda: ops.cache_write(k, v, cache, slot)

    row = 2.0 * tokens
    return [
        ("copy (torch)", 2 * row * hidden, copy),
        ("rms_norm", 2 * row * hidden, norm),
        ("add_rms_norm", 4 * row * hidden, add_norm),
        ("silu_mul", 3 * row * inner, silu),
        ("rope", 2 * row * (heads + kv_heads) * dim, rope),
        ("cache_write", 4 * row * kv_heads * dim, cache_write),
        ("norm_rope_cache", 2 * row * (heads + 2 * kv_heads) * dim, qkv(True)),
        ("  without norms", 2 * row * (heads + 2 * kv_heads) * dim, qkv(False)),
    ]


def bench_rows(tokens: int) -> None:
    """Print microseconds and bytes a second of the row ops."""
    print(f"\nrow ops, {tokens} tokens of an 8B model, bf16\n{'op':18}{'us':>9}{'GB/s':>8}{'of copy':>9}")
    ceiling = 0.0
    for name, nbytes, make in row_cases(tokens):
        us = time_calls(rotating(make, nbytes))
        rate = nbytes / us / 1e3
        ceiling = ceiling or rate
        print(f"{name:18}{us:9.2f}{rate:8.0f}{rate / ceiling:9.0%}")


def sample_call(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Call:
    rows = logits.shape[0]

    def full(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full((rows,), value, dtype=dtype, device="cuda")

    token, zeros = full(0, torch.int32), torch.zeros(rows + 1, dtype=torch.int32, device="cuda")
    addresses = torch.zeros(rows, dtype=torch.uint64, device="cuda")
    seed = torch.arange(rows, device="cuda").to(torch.uint64)
    columns = (full(temperature), full(top_k, torch.int32), full(top_p), full(min_p))
    columns += (full(0.0), full(0.0), full(1.0), seed, full(0, torch.int64), zeros)
    columns += (zeros[:0], columns[0][:0], addresses, zeros[:rows], zeros[:rows], addresses)
    return lambda: ops.sample(token, logits, *columns)


def bench_sample(vocab: int = 128256) -> None:
    """Print microseconds of the sampler by its settings, beside torch's argmax and softmax."""
    settings = {
        "greedy": (0.0, 0, 1.0, 0.0),
        "temperature": (0.8, 0, 1.0, 0.0),
        "min_p 0.05": (0.8, 0, 1.0, 0.05),
        "top_p 0.9": (0.8, 0, 0.9, 0.0),
        "top_k 50": (0.8, 50, 1.0, 0.0),
        "top_k 50 top_p 0.9": (0.8, 50, 0.9, 0.0),
    }
    batches = (1, 16, 64, 256)
    print(f"\nsampling, V = {vocab}, us for S rows\n{'':22}" + "".join(f"{f'S={s}':>9}" for s in batches))

    def line(name: str, make: Callable[[torch.Tensor], Call]) -> None:
        def call(rows: int) -> Callable[[], Call]:
            return lambda: make(random(rows, vocab, dtype=torch.float32) * 2)

        times = [time_calls(rotating(call(s), 4.0 * s * vocab, 24)) for s in batches]
        print(f"{name:22}" + "".join(f"{us:9.1f}" for us in times))

    def argmax(logits: torch.Tensor) -> Call:
        token = torch.empty(len(logits), dtype=torch.int32, device="cuda")
        return lambda: ops.argmax(token, logits)

    def logprobs(logits: torch.Tensor) -> Call:
        count = len(logits)
        ids, token = (torch.zeros(count, n, dtype=torch.int32, device="cuda") for n in (21, 1))
        values, token = torch.empty(count, 21, device="cuda"), token.view(-1)
        return lambda: ops.logprobs(ids, values, token.clone(), logits, token, 20)

    line("argmax", argmax)
    line("torch argmax", lambda logits: lambda: torch.argmax(logits, -1))
    line("torch softmax", lambda logits: lambda: torch.softmax(logits, -1))
    for name, setting in settings.items():
        line(name, lambda logits, setting=setting: sample_call(logits, *setting))
    line("top_p 0.9, peaked", lambda logits: sample_call(logits.mul_(2), *settings["top_p 0.9"]))
    line("logprobs, top 20", logprobs)


def bench_linear() -> None:
    """Print microseconds of each product of two models by the number of rows, beside torch's."""
    shapes = {
        "0.6B qkv": (4096, 1024),
        "0.6B o": (1024, 2048),
        "0.6B gate_up": (6144, 1024),
        "0.6B down": (1024, 3072),
        "0.6B head": (151936, 1024),
        "8B qkv": (6144, 4096),
        "8B o": (4096, 4096),
        "8B gate_up": (28672, 4096),
        "8B down": (4096, 14336),
        "8B head": (128256, 4096),
    }
    print("\nproducts of M rows, bf16, us: ours (GB/s of weights) | torch")
    print(f"{'':14}" + "".join(f"{f'M={m}':>27}" for m in (1, 4, 8, 16)))
    for name, (n, k) in shapes.items():
        nbytes, cells = 2.0 * n * k, []
        weights = [random(n, k) for _ in range(min(64, int(ROTATED_BYTES / nbytes) + 2))]
        torch.cuda.synchronize()
        for rows in (1, 4, 8, 16):
            x, out = random(rows, k), random(rows, n)
            ours = time_calls([partial(ops.linear, out, x, w, weight_ready=True) for w in weights])
            theirs = time_calls([partial(torch.mm, x, w.t(), out=out) for w in weights])
            cells.append(f"{ours:9.1f} ({nbytes / ours / 1e3:4.0f}) |{theirs:8.1f}")
        print(f"{name:14}" + "".join(f"{cell:>27}" for cell in cells))
        del weights


def main(parts: Sequence[str]) -> None:
    """Run the parts named, or all."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {datetime.date.today()}")
    everything: dict[str, Call] = {
        "rows": lambda: bench_rows(16384),
        "small": lambda: bench_rows(16),
        "sample": bench_sample,
        "linear": bench_linear,
    }
    with torch.inference_mode():
        for name, run in everything.items():
            if not parts or name in parts:
                run()


if __name__ == "__main__":
    main(sys.argv[1:])
