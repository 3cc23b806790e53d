"""Sizes that a device step is padded to, so that a few captured graphs serve every mix of rows.

The kernels read lengths on the device; a captured step is fixed only in how many tokens and rows it has
room for. Few sizes mean few captures, fine ones mean little wasted work: above 256 tokens at most an eighth
is wasted, and below them the reading of the weights costs more than the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from octavo.core import StepSizes

if TYPE_CHECKING:
    from octavo.core import StepPlan
    from octavo.plan import Plan

# Steps that sample at every token: as many rows as tokens, or with drafts up to as many. None of the rows was
# admitted in the step. Where they share enough the kernels are those of other steps, and the sizes these.
_DECODE = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
# Rows, and samples, of other steps: they only size the logits and what is sampled, so a few are enough.
_MIXED_ROWS = (8, 64, 256)
# A step of more tokens keeps the device busy for longer than the host takes to launch its kernels.
MAX_GRAPH_TOKENS = 2048
_EAGER_GRAIN = 256
_MOST_USUAL_ROWS = 256
# Keys and values of a layer that rows read again although others read them. On an H200 half as many are read
# as fast as they are shared (bench/results/shared_prefix_h200.txt).
_WORTH_SHARING_BYTES = 256 << 20
# With fewer the kernel of decode steps is better, whatever they share: it stores their newest keys itself.
_LEAST_SHARING_ROWS = 17
_SHARING_CAPABILITY = (9, 0)
_SHARING_HEAD_DIMS = (64, 128, 256)
_SHARING_GRAIN = 16  # tokens that a block holds a multiple of


@dataclass(frozen=True)
class StepShape:
    """What a step has room for, and what of it is compiled in."""

    tokens: int
    rows: int
    samples: int
    queries: int  # tokens that a row has at most; 0: any number
    greedy: bool  # every sample is its highest logit

    @property
    def graphed(self) -> bool:
        """Whether a graph of this shape is worth its memory."""
        return self.tokens <= MAX_GRAPH_TOKENS


class ShapeTable:
    """The shapes of one engine."""

    def __init__(self, max_tokens: int, max_rows: int, max_drafts: int = 0) -> None:
        samples = min(max_rows * (1 + max_drafts), max_tokens)  # a row of drafts has one at each token
        self._max_rows = max_rows
        self.decode = _cut([*_DECODE, *_growing(256, samples)], min(samples, max_tokens))
        self.mixed_rows = _cut([*_MIXED_ROWS, *_doubling(512, samples)], samples)
        self.mixed_tokens = _cut(
            [*_DECODE[3:], *_growing(256, MAX_GRAPH_TOKENS)], min(max_tokens, MAX_GRAPH_TOKENS)
        )
        # The loop in C++ finds shapes too, by the same sizes.
        self.sizes = StepSizes(
            decode=self.decode,
            mixed_rows=self.mixed_rows,
            mixed_tokens=self.mixed_tokens,
            eager_grain=_EAGER_GRAIN,
            max_tokens=max_tokens,
            max_rows=max_rows,
            drafted=1 + max_drafts,
        )

    def of(self, plan: StepPlan) -> StepShape:
        """The smallest shape that holds a step."""
        shape = self.sizes.of(
            tokens=plan.num_tokens,
            rows=plan.num_rows,
            samples=plan.num_samples,
            longest=plan.max_query_len,
            greedy=plan.all_greedy,
            admitted=plan.num_admitted,
            shares=plan.shares,
        )
        return StepShape(*shape)

    @property
    def largest_graph(self) -> StepShape:
        """The graph that needs the most memory."""
        samples = self.mixed_rows[-1]
        return StepShape(self.mixed_tokens[-1], min(samples, self._max_rows), samples, 0, False)

    @property
    def usual_graphs(self) -> list[StepShape]:
        """Graphs that nearly every job meets, the one that needs the most memory first: decode steps of up to
        256 rows, of greedy requests alone and of others.
        """
        sizes = [size for size in reversed(self.decode) if size <= _MOST_USUAL_ROWS]
        return [
            StepShape(size, min(size, self._max_rows), size, 1, greedy)
            for size in sizes
            for greedy in (False, True)
        ]


def core_options(plan: Plan) -> dict[str, Any]:
    """Options of the core that say what its steps gain from the device that runs them."""
    on_gpu = torch.device(plan.device).type == "cuda"
    return sharing_options(plan, torch.cuda.get_device_capability(plan.device) if on_gpu else (0, 0))


def sharing_options(plan: Plan, capability: tuple[int, int]) -> dict[str, int]:
    """Options of the core that say from how many rows and shared tokens on (StepPlan.num_shared_tokens) rows
    of one token had better be given to the attention of steps with rows of any length, which reads once what
    adjacent rows share; none: never.

    `capability`: of the device, (0, 0) where it is a CPU. Layers with a window share nothing, and pay for the
    launch too.
    """
    spec, footprint = plan.spec, plan.footprint
    windows = [spec.layer_windows[layer] for layer in spec.attention_layers]
    full = windows.count(0)
    able = (
        capability == _SHARING_CAPABILITY
        and not plan.batch_invariant
        and plan.kv_dtype == plan.dtype != "float32"
        and spec.latent is None
        and spec.head_dim in _SHARING_HEAD_DIMS
        and plan.block_size % _SHARING_GRAIN == 0
    )
    if not able or full == 0:
        return {}
    tokens = -(-_WORTH_SHARING_BYTES * len(windows) // (full * footprint.token_layer_bytes))
    return {"sharing_min_tokens": tokens, "sharing_min_rows": _LEAST_SHARING_ROWS}


def _growing(first: int, last: int) -> list[int]:
    """Sizes after `first`, an eighth of their power of two apart."""
    sizes, size = [], first
    while size < last:
        size += max((1 << (size.bit_length() - 1)) // 8, 1)
        sizes.append(size)
    return sizes


def _doubling(first: int, last: int) -> list[int]:
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(sizes[-1] * 2)
    return sizes


def _cut(sizes: list[int], limit: int) -> list[int]:
    """The sizes below a limit, and the limit itself."""
    return [*(size for size in sizes if size < limit), limit]
