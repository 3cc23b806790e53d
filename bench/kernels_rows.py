"""The ops around attention beside torch's: rows of a step, products of few rows, the sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from timing import (
    ROTATED_BYTES,
    Call,
    Result,
    column,
    fastest_peer,
    random,
    relative_error,
    rotating,
    time_calls,
)

from octavo import ops

HIDDEN, INNER, HEADS, KV_HEADS, DIM, BLOCK = 4096, 14336, 32, 8, 128, 16  # a layer of an 8B model
EPS = 1e-6


@dataclass(frozen=True)
class RowCase:
    """An op on tokens of a step. `make` gives a call; `error` its distance from float64, once."""

    name: str
    bytes: float  # that are read and written
    make: Callable[[], Call]
    error: Callable[[], float]
    torch: Callable[[], Call] | None = None


def float64_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


def float64_rope(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    cos, sin = (part[:, None] for part in table.double().chunk(2, -1))
    a, b = x.double().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Tokens:
    """The cases for so many tokens."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.weight, self.head_weight = random(HIDDEN), random(DIM)
        self.table = random(count, DIM, dtype=torch.float32)
        self.blocks = count // BLOCK + 1
        self.position = column(torch.arange(count))
        whole = torch.randperm(self.blocks)[: -(-count // BLOCK)]
        prompt = (whole[:, None] * BLOCK + torch.arange(BLOCK)).flatten()[:count]
        self.prompt_slots = column(prompt, torch.int64)  # a prompt fills block after block
        self.decode_slots = column(torch.randperm(self.blocks * BLOCK)[:count], torch.int64)

    def cache(self) -> torch.Tensor:
        return random(self.blocks, 2, KV_HEADS, BLOCK, DIM)

    def qkv(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v = random(self.count, HEADS + 2 * KV_HEADS, DIM).split((HEADS, KV_HEADS, KV_HEADS), 1)
        return q, k, v

    def norm(self) -> RowCase:
        def make() -> Call:
            x, out = random(self.count, HIDDEN), random(self.count, HIDDEN)
            return lambda: ops.rms_norm(out, x, self.weight, EPS)

        def torchs() -> Call:
            x = random(self.count, HIDDEN)
            return lambda: F.rms_norm(x, (HIDDEN,), self.weight, EPS)

        def error() -> float:
            x, out = random(self.count, HIDDEN), random(self.count, HIDDEN)
            ops.rms_norm(out, x, self.weight, EPS)
            return relative_error(out, float64_norm(x, self.weight))

        return RowCase("rms_norm", 4.0 * self.count * HIDDEN, make, error, torchs)

    def add_norm(self) -> RowCase:
        def make() -> Call:
            x, residual = random(self.count, HIDDEN), random(self.count, HIDDEN)
            return lambda: ops.add_rms_norm(x, x, residual, self.weight, EPS)

        def error() -> float:
            x, residual = random(self.count, HIDDEN), random(self.count, HIDDEN)
            want = float64_norm(x + residual, self.weight)
            ops.add_rms_norm(x, x, residual, self.weight, EPS)
            return relative_error(x, want)

        return RowCase("add_rms_norm", 8.0 * self.count * HIDDEN, make, error)

    def silu(self) -> RowCase:
        def make() -> Call:
            x, out = random(self.count, 2 * INNER), random(self.count, INNER)
            return lambda: ops.silu_mul(out, x)

        def torchs() -> Call:
            x = random(self.count, 2 * INNER)
            return lambda: F.silu(x[:, :INNER]) * x[:, INNER:]

        def error() -> float:
            x, out = random(self.count, 2 * INNER), random(self.count, INNER)
            ops.silu_mul(out, x)
            head = x[:256].double()
            return relative_error(out[:256], F.silu(head[:, :INNER]) * head[:, INNER:])

        return RowCase("silu_mul", 6.0 * self.count * INNER, make, error, torchs)

    def rope(self) -> RowCase:
        def make() -> Call:
            q, k, _ = self.qkv()
            return lambda: ops.rope(q, k, self.position, self.table, False)

        def error() -> float:
            q, k, _ = self.qkv()
            want = float64_rope(q, self.table)
            ops.rope(q, k, self.position, self.table, False)
            return relative_error(q, want)

        return RowCase("rope", 4.0 * self.count * (HEADS + KV_HEADS) * DIM, make, error)

    def cache_write(self, name: str, slots: torch.Tensor) -> RowCase:
        def make() -> Call:
            (_, k, v), cache = self.qkv(), self.cache()
            return lambda: ops.cache_write(k, v, cache, slots)

        def error() -> float:
            (_, k, v), cache = self.qkv(), self.cache()
            ops.cache_write(k, v, cache, slots)
            held = cache[slots // BLOCK, 0, :, slots % BLOCK]
            return relative_error(held, k.double())

        return RowCase(f"cache_write, {name}", 8.0 * self.count * KV_HEADS * DIM, make, error)

    def fused(self, normed: bool) -> RowCase:
        norms = (self.head_weight, self.head_weight) if normed else (None, None)
        rest = (self.position, self.table)

        def make() -> Call:
            (q, k, v), cache = self.qkv(), self.cache()
            return lambda: ops.norm_rope_cache(q, k, v, *rest, cache, self.prompt_slots, *norms)

        def error() -> float:
            (q, k, v), cache = self.qkv(), self.cache()
            want = float64_rope(float64_norm(q, self.head_weight) if normed else q, self.table)
            ops.norm_rope_cache(q, k, v, *rest, cache, self.prompt_slots, *norms)
            return relative_error(q, want)

        name = "norm_rope_cache" if normed else "  without norms"
        return RowCase(name, 4.0 * self.count * (HEADS + 2 * KV_HEADS) * DIM, make, error)

    def cases(self) -> list[RowCase]:
        return [
            self.norm(),
            self.add_norm(),
            self.silu(),
            self.rope(),
            self.cache_write("prompt", self.prompt_slots),
            self.cache_write("any slot", self.decode_slots),
            self.fused(True),
            self.fused(False),
        ]


def copy_of(nbytes: float) -> float:
    """Return microseconds of a copy that reads and writes so many bytes together."""
    count = int(nbytes / 4)

    def make() -> Call:
        x, out = random(count), random(count)
        return lambda: out.copy_(x)

    return time_calls(rotating(make, nbytes))


def row_results(part: str, tokens: int) -> Iterator[Result]:
    for case in Tokens(tokens).cases():
        error, us = case.error(), time_calls(rotating(case.make, case.bytes))
        peer = {}
        if (make := case.torch) is not None:
            us_of_torch = time_calls(rotating(make, case.bytes))
            peer = {"peer": "torch", "peer_us": us_of_torch}
        share = copy_of(case.bytes) / us
        yield Result(
            part=part, case=case.name, us=us, gbytes=case.bytes / 1e9, of_copy=share, error=error, **peer
        )
        torch.cuda.empty_cache()


def rows() -> Iterator[Result]:
    """Row ops of 16,384 tokens of an 8B layer: as fast as a copy, if all goes well."""
    yield from row_results("rows", 16384)


def small() -> Iterator[Result]:
    """The same of 16 tokens, where their latency counts."""
    yield from row_results("small", 16)


SHAPES = {
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


def linear() -> Iterator[Result]:
    """Products of a step's rows: up to 16 stream the weight, more of them take compute capability 9.0."""
    most = 512 if torch.cuda.get_device_capability() == (9, 0) else 16
    for name, (n, k) in SHAPES.items():
        nbytes = 2.0 * n * k
        weights = [random(n, k) for _ in range(min(64, int(ROTATED_BYTES / nbytes) + 2))]
        torch.cuda.synchronize()
        for count in (m for m in (1, 4, 8, 16, 17, 32, 64, 96, 128, 192, 256, 512) if m <= most):
            x, out = random(count, k), random(count, n)
            ops.linear(out, x, weights[0])
            want = x.double() @ weights[0][:4096].double().t()
            error = relative_error(out[:, :4096], want)
            us = time_calls([partial(ops.linear, out, x, w, weight_ready=True) for w in weights])
            theirs = time_calls([partial(torch.mm, x, w.t(), out=out) for w in weights])
            torch.mm(x, weights[0].t(), out=out)
            peer = {"peer": "torch", "peer_us": theirs, "peer_error": relative_error(out[:, :4096], want)}
            yield Result(
                part="linear", case=f"{name}, {count} rows", us=us, gbytes=nbytes / 1e9, error=error, **peer
            )
        del weights


@dataclass(frozen=True)
class Setting:
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


SETTINGS = {
    "greedy": Setting(temperature=0.0),
    "temperature": Setting(),
    "min_p 0.05": Setting(min_p=0.05),
    "top_p 0.9": Setting(top_p=0.9),
    "top_k 50": Setting(top_k=50),
    "top_k 50, top_p 0.9": Setting(top_k=50, top_p=0.9),
}
VOCAB = 128256


def sample_call(token: torch.Tensor, logits: torch.Tensor, setting: Setting) -> Call:
    """Return a call of the sampler with nothing to edit."""
    count = len(logits)

    def full(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full((count,), value, dtype=dtype, device="cuda")

    zeros = torch.zeros(count + 1, dtype=torch.int32, device="cuda")
    none = torch.zeros(count, dtype=torch.uint64, device="cuda")
    seed = torch.arange(count, device="cuda").to(torch.uint64)
    columns = (full(setting.temperature), full(setting.top_k, torch.int32), full(setting.top_p))
    columns += (full(setting.min_p), full(0.0), full(0.0), full(1.0), seed, full(0, torch.int64), zeros)
    columns += (zeros[:0], columns[0][:0], none, zeros[:count], zeros[:count], none)
    scratch = None if logits.dtype == torch.float32 else torch.empty(logits.shape, device="cuda")
    return lambda: ops.sample(token, logits, *columns, scratch)


def torch_sampler(logits: torch.Tensor, setting: Setting) -> Call:
    """Return what one writes with torch: no sort of the whole row where top_k says how many count."""

    def draw(values: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(torch.softmax(values.float() / setting.temperature, -1), 1)

    def cut() -> torch.Tensor:
        whole = setting.top_k == 0
        values, ids = logits.sort(-1, descending=True) if whole else logits.topk(setting.top_k, -1)
        weights = torch.softmax(values.float() / setting.temperature, -1)
        weights.masked_fill_(weights.cumsum(-1) - weights >= setting.top_p, 0.0)
        return ids.gather(-1, torch.multinomial(weights, 1))

    if setting.temperature == 0.0:
        return lambda: torch.argmax(logits, -1)
    return cut if setting.top_k or setting.top_p < 1.0 else lambda: draw(logits)


def flashinfer_sampler(logits: torch.Tensor, setting: Setting) -> Call:
    """Return FlashInfer's, the softmax included."""
    from flashinfer import sampling

    def call() -> object:
        weights = torch.softmax(logits.float() / setting.temperature, -1)
        if setting.top_k:
            return sampling.top_k_top_p_sampling_from_probs(weights, setting.top_k, setting.top_p)
        if setting.top_p < 1.0:
            return sampling.top_p_sampling_from_probs(weights, setting.top_p)
        return sampling.sampling_from_probs(weights)

    return call


def not_allowed(token: torch.Tensor, logits: torch.Tensor, setting: Setting) -> float:
    """Return the share of rows whose token is one that float64 cuts away."""
    wide = logits.double()
    chosen = wide.gather(-1, token.long()[:, None])
    above = (wide > chosen).sum(-1)
    if setting.temperature == 0.0:
        return float((above > 0).double().mean())
    weights = torch.softmax(wide / setting.temperature, -1)
    picked = weights.gather(-1, token.long()[:, None])
    wrong = (picked < setting.min_p * weights.amax(-1, keepdim=True) * (1 - 1e-5))[:, 0]
    if setting.top_k:
        wrong |= above >= setting.top_k
        kept = wide.topk(setting.top_k, -1).values[:, -1:]
        weights = torch.where(wide >= kept, weights, 0.0)
        weights /= weights.sum(-1, keepdim=True)
    before = torch.where(wide > chosen, weights, 0.0).sum(-1)
    return float((wrong | (before > setting.top_p + 1e-5)).double().mean())


@dataclass(frozen=True)
class SampleCase:
    """Rows of logits in one dtype, and a setting of SETTINGS; "peaked": most of the mass on few tokens."""

    rows: int
    dtype: torch.dtype
    name: str

    @property
    def setting(self) -> Setting:
        return SETTINGS[self.name.removesuffix(", peaked")]

    @property
    def bytes(self) -> float:
        return float(self.dtype.itemsize * self.rows * VOCAB)

    def logits(self) -> torch.Tensor:
        spread = 5.0 if self.name.endswith("peaked") else 2.0
        return random(self.rows, VOCAB, dtype=torch.float32).mul_(spread).to(self.dtype)

    def ours(self) -> list[Call]:
        token = column(range(self.rows))
        return rotating(lambda: sample_call(token, self.logits(), self.setting), self.bytes, 24)

    def theirs(self, make: Callable[[torch.Tensor, Setting], Call]) -> tuple[list[Call], float]:
        return rotating(lambda: make(self.logits(), self.setting), self.bytes, 24), 0.0

    def peers(self) -> dict[str, Callable[[], tuple[list[Call], float]]]:
        from importlib.util import find_spec

        if self.setting.min_p > 0.0:
            return {}
        found = {"torch": partial(self.theirs, torch_sampler)}
        if find_spec("flashinfer") and self.setting.temperature > 0.0:
            found["FlashInfer"] = partial(self.theirs, flashinfer_sampler)
        return found  # type: ignore[return-value]

    def measure(self) -> Result:
        token, logits = column(range(self.rows)), self.logits()
        sample_call(token, logits.clone(), self.setting)()
        error, us = not_allowed(token, logits, self.setting), time_calls(self.ours())
        best = fastest_peer(self.peers())
        best.pop("peer_error", None)
        name = f"{self.rows} x {self.name}" + ("" if self.dtype == torch.bfloat16 else ", f32")
        return Result(part="sample", case=name, us=us, gbytes=self.bytes / 1e9, error=error, **best)


def sample() -> Iterator[Result]:
    """The sampler of rows of a vocabulary of 128,256; error is the share of tokens that should not be."""
    for dtype, batches in ((torch.bfloat16, (1, 64, 256)), (torch.float32, (256,))):
        for rows in batches:
            for name in [*SETTINGS, "top_p 0.9, peaked"]:
                yield SampleCase(rows, dtype, name).measure()
                torch.cuda.empty_cache()
