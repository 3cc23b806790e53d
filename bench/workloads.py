"""The jobs that benchmarks give to every engine: token ids and output lengths from fixed seeds.

Engine-independent: prompts are token ids, every output has exactly its length, sampling is greedy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BATCH = 32


@dataclass(frozen=True)
class Job:
    """Requests that are submitted at once."""

    name: str
    prompts: list[list[int]]
    output_lens: list[int]

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


def _tokens(rng: np.random.Generator, count: int, vocab_size: int) -> list[int]:
    tokens: list[int] = rng.integers(vocab_size // 4, vocab_size, count).tolist()
    return tokens
