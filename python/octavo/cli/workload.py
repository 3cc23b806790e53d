"""Synthetic requests for `octavo bench`: token ids and output lengths from a fixed seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DATASETS = ("random", "sharegpt-like")
# Lengths of the shared conversations that the field measures with are close to lognormal: the spreads of
# prompts and of answers, and the range that benchmark clients keep.
PROMPT_SIGMA, OUTPUT_SIGMA = 1.1, 0.9
SHORTEST, LONGEST = 4, 1024


@dataclass(frozen=True)
class Workload:
    """Requests as the engine takes them; `output_lens[i]` tokens are made for prompt i, whatever they are."""

    prompts: list[list[int]]
    output_lens: list[int]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    @property
    def output_tokens(self) -> int:
        """Tokens of all outputs."""
        return sum(self.output_lens)

    @property
    def longest(self) -> int:
        """The context that the longest request needs."""
        return max(len(prompt) + length for prompt, length in zip(self.prompts, self.output_lens))


def make_workload(
    dataset: str,
    num_prompts: int,
    input_len: int,
    output_len: int,
    *,
    prefix_len: int = 0,
    vocab_size: int,
    seed: int = 0,
) -> Workload:
    """`random`: every request has these lengths. `sharegpt-like`: they are the means of lognormal lengths.

    `prefix_len` tokens, the same for all, stand before each prompt.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    if dataset == "random":
        inputs, outputs = np.full(num_prompts, input_len), np.full(num_prompts, output_len)
    else:
        inputs = lognormal_lengths(rng, num_prompts, input_len, PROMPT_SIGMA)
        outputs = lognormal_lengths(rng, num_prompts, output_len, OUTPUT_SIGMA)
    prefix = random_tokens(rng, prefix_len, vocab_size)
    prompts = [prefix + random_tokens(rng, int(length), vocab_size) for length in inputs]
    return Workload(prompts, [int(length) for length in outputs])


def lognormal_lengths(
    rng: np.random.Generator, count: int, mean: int, sigma: float, low: int = SHORTEST, high: int = LONGEST
) -> NDArray[np.int64]:
    """`count` lengths within [low, high] whose mean is `mean` to 1 %, or the nearest that the range allows.

    Clipping moves the mean, so the scale is corrected until it is right; the draws themselves stay the same.
    """
    import numpy as np

    high = max(high, 4 * mean)
    shape = np.exp(sigma * rng.standard_normal(count) - sigma**2 / 2)
    scale = float(mean)
    lengths = np.clip(np.rint(scale * shape), low, high)
    for _ in range(100):
        if abs(lengths.mean() - mean) <= 0.01 * mean:
            break
        scale *= mean / lengths.mean()
        lengths = np.clip(np.rint(scale * shape), low, high)
    return lengths.astype(np.int64)


def random_tokens(rng: np.random.Generator, count: int, vocab_size: int) -> list[int]:
    """Token ids from the middle half of the vocabulary: special tokens are among its first or its last."""
    low = vocab_size // 4
    tokens: list[int] = rng.integers(low, max(3 * low, low + 1), count).tolist()
    return tokens
