"""The CPU ops beside torch's own: paged attention beside scaled_dot_product_attention, and the row ops.

    python bench/ops_cpu.py [--threads 2] [--dtype float32] [--json out.json]

Each figure is the best of several timed repeats, in microseconds a call; with one thread it is CPU time,
which a busy machine disturbs less. torch's attention gets what the paged one does not have: keys and values
of each row contiguous, rows of one length. "chain" alternates a torch linear layer with an op, as a model
does: two thread pools that fight over the cores only show there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from octavo import ops

BLOCK = 16


@dataclass(frozen=True)
class Attention:
    """Rows of one length: `queries` new tokens of each row look at `length` cached ones."""

    name: str
    rows: int
    length: int
    queries: int
    heads: int
    kv_heads: int
    head_dim: int


ATTENTION = (
    Attention("decode 1 x 256", 1, 256, 1, 12, 4, 64),
    Attention("decode 1 x 2k", 1, 2048, 1, 12, 4, 64),
    Attention("decode 1 x 16k", 1, 16384, 1, 32, 8, 128),
    Attention("decode 32 x 256", 32, 256, 1, 12, 4, 64),
    Attention("decode 32 x 1k", 32, 1024, 1, 32, 8, 128),
    Attention("decode 8 x 1k, no GQA", 8, 1024, 1, 16, 16, 64),
    Attention("prefill 1 x 128", 1, 128, 128, 12, 4, 64),
    Attention("prefill 1 x 512", 1, 512, 512, 12, 4, 64),
    Attention("prefill 1 x 2k", 1, 2048, 2048, 12, 4, 64),
    Attention("prefill 1 x 512, d128", 1, 512, 512, 32, 8, 128),
    Attention("chunk 256 on 4k", 1, 4096, 256, 12, 4, 64),
)


@dataclass(frozen=True)
class Result:
    """Microseconds of one case, ours and torch's."""

    name: str
    octavo_us: float
    torch_us: float


def best_us(call: Callable[[], object], budget_s: float = 0.3) -> float:
    """Return the shortest time of one call in microseconds, over repeats that fill the budget."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    call()
    best = math.inf
    end = time.perf_counter() + budget_s
    while time.perf_counter() < end:
        start = clock()
        call()
        best = min(best, clock() - start)
    return best * 1e6


def attention(case: Attention, dtype: torch.dtype) -> Result:
    """Time one shape of attention; the two results are compared first."""
    blocks = -(-case.length // BLOCK)
    total = case.rows * blocks
    shape = (total + 1, 2, case.kv_heads, BLOCK, case.head_dim)
    cache = torch.randn(shape).to(dtype)
    table = (torch.randperm(total) + 1).reshape(case.rows, blocks).int()
    q = torch.randn(case.rows * case.queries, case.heads, case.head_dim).to(dtype)
    out = torch.empty_like(q)
    row_slot = torch.arange(case.rows, dtype=torch.int32)
    start = (torch.arange(case.rows + 1) * case.queries).int()
    seq_len = torch.full((case.rows,), case.length, dtype=torch.int32)
    scale = case.head_dim**-0.5

    def ours() -> None:
        ops.paged_attention(out, q, cache, table, row_slot, start, seq_len, scale)

    gathered = cache[table.long()].transpose(1, 2).transpose(2, 3)  # [rows, 2, heads, blocks, bs, dim]
    gathered = gathered.reshape(case.rows, 2, case.kv_heads, blocks * BLOCK, case.head_dim)
    keys, values = (gathered[:, i, :, : case.length].contiguous() for i in (0, 1))
    queries = q.view(case.rows, case.queries, case.heads, case.head_dim).transpose(1, 2)
    position = torch.arange(case.length - case.queries, case.length)
    mask = torch.arange(case.length)[None] <= position[:, None]
    square = case.queries == case.length

    def theirs() -> torch.Tensor:
        return F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=None if square or case.queries == 1 else mask,
            is_causal=square and case.queries > 1,
            enable_gqa=True,
        )

    ours()
    result = out.view(case.rows, case.queries, case.heads, -1).transpose(1, 2)
    difference = (result - theirs()).abs().max().item()
    if difference > (1e-4 if dtype == torch.float32 else 5e-2):
        raise SystemExit(f"{case.name}: octavo and torch differ by {difference}")
    return Result(case.name, best_us(ours), best_us(theirs))


@dataclass(frozen=True)
class Latent:
    """Rows of one length over latents of 512 + 64: `heads` 16 is DeepSeek-V2 Lite's, 128 DeepSeek-V3's."""

    name: str
    rows: int
    length: int
    queries: int
    heads: int


LATENT = (
    Latent("latent decode 1 x 2k, 16 heads", 1, 2048, 1, 16),
    Latent("latent decode 8 x 1k, 16 heads", 8, 1024, 1, 16),
    Latent("latent decode 1 x 2k, 128 heads", 1, 2048, 1, 128),
    Latent("latent decode 4 x 1k, 128 heads", 4, 1024, 1, 128),
    Latent("latent prefill 1 x 256, 16 heads", 1, 256, 256, 16),
    Latent("latent chunk 64 on 1k, 16 heads", 1, 1024, 64, 16),
    Latent("latent chunk 16 on 1k, 128 heads", 1, 1024, 16, 128),
)


def latent(case: Latent, dtype: torch.dtype) -> Result:
    """Time latent attention beside torch's two products and softmax over dense keys of each row."""
    wide, width, blocks = 512, 576, -(-case.length // BLOCK)
    total = case.rows * blocks
    cache = torch.randn(total + 1, BLOCK, width).to(dtype)
    table = (torch.randperm(total) + 1).reshape(case.rows, blocks).int()
    q = (torch.randn(case.rows * case.queries, case.heads, width) / 4).to(dtype)
    out = torch.empty(*q.shape[:2], wide, dtype=dtype)
    row_slot = torch.arange(case.rows, dtype=torch.int32)
    start = (torch.arange(case.rows + 1) * case.queries).int()
    seq_len = torch.full((case.rows,), case.length, dtype=torch.int32)
    scale = 192**-0.5

    def ours() -> None:
        ops.latent_attention(out, q, cache, table, row_slot, start, seq_len, scale)

    keys = cache[table.long()].view(case.rows, blocks * BLOCK, width)[:, : case.length].contiguous()
    values, queries = keys[..., :wide], q.view(case.rows, case.queries * case.heads, width)
    position = torch.arange(case.length - case.queries, case.length).repeat_interleave(case.heads)
    hidden = torch.arange(case.length)[None] > position[:, None]

    def theirs() -> torch.Tensor:
        scores = torch.bmm(queries, keys.mT).float().mul_(scale)
        if case.queries > 1:
            scores.masked_fill_(hidden, -math.inf)
        return torch.bmm(scores.softmax(-1).to(dtype), values)

    ours()
    difference = (out.view(case.rows, -1, wide) - theirs()).abs().max().item()
    if difference > (1e-4 if dtype == torch.float32 else 5e-2):
        raise SystemExit(f"{case.name}: octavo and torch differ by {difference}")
    return Result(case.name, best_us(ours), best_us(theirs))


def row_ops(tokens: int, dtype: torch.dtype) -> list[Result]:
    """Time the ops that go over rows, for `tokens` tokens of a model of width 768."""
    hidden, inner, heads, dim = 768, 2048, 16, 64
    x = torch.randn(tokens, hidden).to(dtype)
    residual, out, weight = x.clone(), torch.empty_like(x), torch.randn(hidden).to(dtype)
    gate_up = torch.randn(tokens, 2 * inner).to(dtype)
    gated = torch.empty(tokens, inner, dtype=dtype)
    qk = torch.randn(tokens, heads, dim).to(dtype)
    position = torch.arange(tokens, dtype=torch.int32)
    table = torch.rand(max(tokens, 1), dim)
    cos, sin = (torch.cat([part, part], -1).to(dtype)[:, None] for part in table.chunk(2, -1))
    gate, up = gate_up.chunk(2, -1)

    def rotate() -> torch.Tensor:
        low, high = qk.chunk(2, -1)
        return qk * cos + torch.cat([-high, low], -1) * sin

    def add_norm() -> torch.Tensor:
        return F.rms_norm(residual.add_(x), (hidden,), weight, 1e-6)

    pairs: tuple[tuple[str, Callable[[], object], Callable[[], object]], ...] = (
        (
            "rms_norm",
            lambda: ops.rms_norm(out, x, weight, 1e-6),
            lambda: F.rms_norm(x, (hidden,), weight, 1e-6),
        ),
        ("add_rms_norm", lambda: ops.add_rms_norm(out, x, residual, weight, 1e-6), add_norm),
        ("rope", lambda: ops.rope(qk[:, :12], qk[:, 12:], position, table, False), rotate),
        ("silu_mul", lambda: ops.silu_mul(gated, gate_up), lambda: F.silu(gate) * up),
    )
    return [Result(f"{name} x {tokens}", best_us(ours), best_us(theirs)) for name, ours, theirs in pairs]


def scan(rows: int, tokens: int) -> Result:
    """Time Mamba2's scan of `rows` rows of one length, beside torch updating all states token by token."""
    heads, dim, size = 64, 64, 128
    x, b, c = (torch.randn(rows * tokens, *shape) for shape in ((heads, dim), (1, size), (1, size)))
    dt, weights = torch.randn(rows * tokens, heads), torch.randn(heads)
    state, out = torch.zeros(rows, heads, size, dim), torch.empty_like(x)
    start = (torch.arange(rows + 1) * tokens).int()
    block = torch.arange(rows, dtype=torch.int32)

    def ours() -> None:
        ops.ssm_scan(out, x, dt, b, c, weights, weights, weights, state, start, block, block)

    def theirs() -> None:
        held = state.clone()
        parts = (v.view(rows, tokens, *v.shape[1:]) for v in (x, dt, b, c))
        for values, raw, given, read in zip(*(part.unbind(1) for part in parts)):
            step = F.softplus(raw + weights)
            decay = (-weights.exp() * step).exp()
            scaled = (step[..., None] * values)[:, :, None, :]
            held = torch.addcmul(held * decay[..., None, None], given[..., None], scaled)
            torch.matmul(read[:, :, None, :], held)

    return Result(f"ssm_scan {rows} x {tokens}", best_us(ours), best_us(theirs))


def sampling(rows: int, vocab: int) -> list[Result]:
    """Time the sampler beside softmax and multinomial (torch sorts for top-p, so it is given plain draws)."""
    logits = torch.randn(rows, vocab) * 3
    scratch, token = logits.clone(), torch.empty(rows, dtype=torch.int32)
    zeros, ones = torch.zeros(rows), torch.ones(rows)
    none = torch.zeros(rows, dtype=torch.int32)
    words = torch.zeros(rows, dtype=torch.uint64)
    index = torch.zeros(rows, dtype=torch.int64)
    starts = torch.zeros(rows + 1, dtype=torch.int32)
    no_ids, no_values = torch.zeros(0, dtype=torch.int32), torch.zeros(0)

    def draw(top_k: int, top_p: float) -> Callable[[], None]:
        k, p = torch.full((rows,), top_k, dtype=torch.int32), torch.full((rows,), top_p)

        def call() -> None:
            scratch.copy_(logits)
            ops.sample(
                token, scratch, ones, k, p, zeros, zeros, zeros, ones, words, index, starts, no_ids,
                no_values, words, none, none, words,
            )  # fmt: skip

        return call

    def theirs() -> torch.Tensor:
        return torch.multinomial(logits.softmax(-1), 1)

    peer = best_us(theirs)
    settings = (("plain", 0, 1.0), ("top_k 50", 50, 1.0), ("top_p 0.9", 0, 0.9), ("both", 50, 0.9))
    return [Result(f"sample {rows} x {vocab}, {name}", best_us(draw(k, p)), peer) for name, k, p in settings]


def chain(tokens: int) -> list[Result]:
    """Time linear + op alternating, beside the sum of the two alone (which stands in the torch column)."""
    x, weight = torch.randn(tokens, 768), torch.randn(4096, 768)
    gated = torch.empty(tokens, 2048)
    gate_up = F.linear(x, weight)

    def op() -> None:
        ops.silu_mul(gated, gate_up)

    def both() -> None:
        F.linear(x, weight)
        op()

    alone = best_us(lambda: F.linear(x, weight)) + best_us(op)
    return [Result(f"chain linear + silu_mul x {tokens} (torch: sum of both)", best_us(both), alone)]


def main() -> int:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    results = [attention(case, dtype) for case in ATTENTION]
    results += [latent(case, dtype) for case in LATENT]
    results += row_ops(1, dtype) + row_ops(32, dtype) + row_ops(512, dtype)
    if dtype == torch.float32:
        results += [scan(1, 1), scan(8, 1), scan(1, 128)]
    results += sampling(8, 32000) + chain(1) + chain(32)
    print(f"{ops.isa()}, {ops.thread_backend()} x {ops.num_threads()}, {args.dtype}")
    print(f"{'case':<52}{'octavo us':>12}{'torch us':>12}{'ratio':>8}")
    for r in results:
        print(f"{r.name:<52}{r.octavo_us:>12.1f}{r.torch_us:>12.1f}{r.torch_us / r.octavo_us:>8.2f}")
    if args.json:
        with open(args.json, "w") as file:
            rows = [asdict(r) for r in results]
            json.dump({"dtype": args.dtype, "threads": args.threads, "results": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(main())
