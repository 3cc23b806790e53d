"""The jobs that benchmarks give to every engine: token ids and output lengths from fixed seeds.

Engine-independent: prompts are token ids, every output has exactly its length, sampling is greedy unless a
job says otherwise. The first three suit a CPU, the others a GPU and models of a hundred thousand tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BATCH = 32


@dataclass(frozen=True)
class Job:
    """Requests that are submitted at once."""

    name: str
    prompts: list[list[int]]
    output_lens: list[int]
    temperature: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    @property
    def output_tokens(self) -> int:
        """Tokens that were asked for; what an engine makes beyond them counts for nothing."""
        return sum(self.output_lens)

    @property
    def longest(self) -> int:
        """The context that the longest request needs."""
        return max(len(prompt) + length for prompt, length in zip(self.prompts, self.output_lens))


def mixed(vocab_size: int, *, scale: float = 1.0) -> Job:
    """32 requests, prompts of 32 to 512 tokens, outputs of 16 to 256, both uniform; `scale` shortens them."""
    rng = np.random.default_rng(1)
    inputs = rng.integers(32, 513, BATCH) * scale
    outputs = rng.integers(16, 257, BATCH) * scale
    prompts = [_tokens(rng, int(length), vocab_size) for length in inputs]
    return Job("mixed batch of 32", prompts, [max(int(length), 1) for length in outputs])


def single(vocab_size: int, *, scale: float = 1.0) -> Job:
    """One request: 128 tokens in, 128 out."""
    rng = np.random.default_rng(2)
    return Job("batch 1", [_tokens(rng, int(128 * scale), vocab_size)], [max(int(128 * scale), 2)])


def shared_prefix(vocab_size: int, *, scale: float = 1.0) -> Job:
    """32 requests that share 768 tokens, each with 32 of its own and 16 out: one document, many questions."""
    rng = np.random.default_rng(3)
    prefix = _tokens(rng, int(768 * scale), vocab_size)
    prompts = [prefix + _tokens(rng, 32, vocab_size) for _ in range(BATCH)]
    return Job("shared prefix, 32 requests", prompts, [16] * BATCH)


def nano() -> Job:
    """256 requests, 100 to 1,024 tokens in and out, uniform: the job of nano-vllm's benchmark."""
    draw = random.Random(0)
    prompts = [[draw.randint(0, 10_000) for _ in range(draw.randint(100, 1024))] for _ in range(256)]
    return Job("nano", prompts, [draw.randint(100, 1024) for _ in range(256)], temperature=0.6)


def sharegpt() -> Job:
    """1,000 requests with lengths as in ShareGPT: lognormal, means of about 220 tokens in and 200 out."""
    rng = np.random.default_rng(1)
    inputs = _lognormal(rng, 1000, mean=220, sigma=1.1)
    outputs = _lognormal(rng, 1000, mean=200, sigma=0.9)
    return Job("sharegpt", [_ordinary(rng, length) for length in inputs], outputs)


def prefix() -> Job:
    """512 requests that share 2,048 tokens, each with 128 of its own and 64 out."""
    rng = np.random.default_rng(2)
    shared = _ordinary(rng, 2048)
    return Job("prefix", [shared + _ordinary(rng, 128) for _ in range(512)], [64] * 512)


def prefixes() -> Job:
    """256 requests that share four prompts of 2,048 tokens in turns, each with 128 of its own and 128 out."""
    rng = np.random.default_rng(6)
    shared = [_ordinary(rng, 2048) for _ in range(4)]
    return Job("prefixes", [shared[i % 4] + _ordinary(rng, 128) for i in range(256)], [128] * 256)


def prefixes_sorted() -> Job:
    """The same requests, prompt by prompt."""
    job = prefixes()
    prompts = [job.prompts[i] for first in range(4) for i in range(first, 256, 4)]
    return Job("prefixes_sorted", prompts, job.output_lens)


def longctx() -> Job:
    """16 requests of 32,768 tokens, 128 out."""
    rng = np.random.default_rng(3)
    return Job("longctx", [_ordinary(rng, 32_768) for _ in range(16)], [128] * 16)


def decode1() -> Job:
    """One request alone: 128 tokens in, 512 out."""
    rng = np.random.default_rng(4)
    return Job("decode1", [_ordinary(rng, 128)], [512])


def warm_up() -> Job:
    """Enough of everything to load what is loaded on first use."""
    rng = np.random.default_rng(5)
    return Job("warm-up", [_ordinary(rng, 64) for _ in range(8)], [16] * 8)


GPU_JOBS: dict[str, Callable[[], Job]] = {
    job.__name__: job for job in (nano, sharegpt, prefix, prefixes, prefixes_sorted, longctx, decode1)
}


def _lognormal(rng: np.random.Generator, count: int, *, mean: float, sigma: float) -> list[int]:
    """Lengths of 4 to 1,024 whose mean, after clipping, is within half a percent of `mean`."""
    normal = rng.standard_normal(count)
    scale = mean
    for _ in range(200):
        lengths = np.clip(np.rint(scale * np.exp(sigma * normal - sigma * sigma / 2)), 4, 1024)
        if abs(lengths.mean() - mean) < 0.005 * mean:
            break
        scale *= mean / lengths.mean()
    return [int(length) for length in lengths]


def _ordinary(rng: np.random.Generator, count: int) -> list[int]:
    """Ids that are ordinary tokens in every model of model_folders.py."""
    tokens: list[int] = rng.integers(1000, 100_000, count).tolist()
    return tokens


def _tokens(rng: np.random.Generator, count: int, vocab_size: int) -> list[int]:
    tokens: list[int] = rng.integers(vocab_size // 4, vocab_size, count).tolist()
    return tokens
