"""What batch_invariant costs on a CPU: products, attention, and the steps of a model.

    python bench/invariance_cpu.py [--dtype bfloat16]

On one thread, in CPU time, which a busy machine disturbs less; the best of several repeats. The model has the
layers of Qwen3-0.6B, four of them, and random weights. "factor" is the time with over the time without.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from model_folders import CONFIGS, model_folder
from ops_cpu import ATTENTION, BLOCK, Attention, best_us

from octavo import LLM, SamplingParams, ops
from octavo.layers.linear import invariant_product, product

SHAPES = ((4096, 1024), (1024, 3072), (4096, 4096))  # rows and columns of a weight
ROWS = (1, 4, 16, 64, 256, 1024)
LAYERS = 4
PROMPT = 512
NEW = 16


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    dtype = getattr(torch, parser.parse_args().dtype)
    torch.set_num_threads(1)
    print(f"{dtype}, {ops.isa()}, one thread\n")
    for shape, rows in itertools.product(SHAPES, ROWS):
        operands = torch.randn(rows, shape[1]).to(dtype), torch.randn(shape).to(dtype)
        times = (best_us(functools.partial(call, *operands), 0.15) for call in (invariant_product, product))
        report(f"product of {rows} rows with {shape[0]} x {shape[1]}", *times)
    for case in ATTENTION:
        call = attention(case, dtype)
        times = (best_us(functools.partial(call, invariant), 0.15) for invariant in (True, False))
        report(case.name, *times)
    with_it, without = (steps(dtype, invariant) for invariant in (True, False))
    for name, seconds in with_it.items():
        report(name, seconds * 1e6, without[name] * 1e6)
    return 0


def report(name: str, with_it: float, without: float) -> None:
    """Print one line; microseconds."""
    print(f"{name:45} {with_it:12.0f} us {without:12.0f} us   factor {with_it / without:.2f}", flush=True)


def attention(case: Attention, dtype: torch.dtype) -> Callable[[bool], None]:
    """Return a call of paged attention that is invariant or not."""
    blocks = -(-case.length // BLOCK)
    cache = torch.randn(case.rows * blocks + 1, 2, case.kv_heads, BLOCK, case.head_dim).to(dtype)
    table = (torch.randperm(case.rows * blocks) + 1).reshape(case.rows, blocks).int()
    q = torch.randn(case.rows * case.queries, case.heads, case.head_dim).to(dtype)
    out = torch.empty_like(q)
    row_slot = torch.arange(case.rows, dtype=torch.int32)
    start = (torch.arange(case.rows + 1) * case.queries).int()
    seq_len = torch.full((case.rows,), case.length, dtype=torch.int32)

    def call(invariant: bool) -> None:
        rows = (table, row_slot, start, seq_len)
        ops.paged_attention(out, q, cache, *rows, case.head_dim**-0.5, invariant=invariant)

    return call


def steps(dtype: torch.dtype, invariant: bool) -> dict[str, float]:
    """Return CPU seconds of a prompt and of decode steps of several batches."""
    with tempfile.TemporaryDirectory() as parent:
        folder = model_folder("Qwen3-0.6B", Path(parent))
        config = {**CONFIGS["Qwen3-0.6B"], "num_hidden_layers": LAYERS}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        llm = LLM(
            str(folder),
            load_format="dummy",
            dtype=str(dtype).removeprefix("torch."),
            num_threads=1,
            max_model_len=1024,
            kv_cache_memory_bytes="512MiB",
            enable_prefix_caching=False,
            batch_invariant=invariant,
        )
    result = {f"model: a prompt of {PROMPT} tokens": least(llm, 1, PROMPT, 1)}
    for batch in (1, 8, 64):
        whole, first = least(llm, batch, 32, 1 + NEW), least(llm, batch, 32, 1)
        result[f"model: a step of {batch} rows"] = (whole - first) / NEW
    return result


def least(llm: LLM, batch: int, length: int, new: int) -> float:
    """Return the fewest CPU seconds of a job."""
    params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
    prompts = [[1 + (i * 7 + j) % 1000 for j in range(length)] for i in range(batch)]
    best = math.inf
    for _ in range(3):
        start = time.process_time()
        llm.generate(prompts, params, use_tqdm=False)
        best = min(best, time.process_time() - start)
    return best


if __name__ == "__main__":
    raise SystemExit(main())
