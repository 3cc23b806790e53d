"""The C++ core: scheduler, KV manager and step batch, without a model.

`Engine` plans steps and takes their tokens; `serve` does both in virtual time, for octavo.simulate;
`KVManager`, `PrefixChain` and `BlockPool` show its parts alone. docs/guides/drive-the-core.md walks through
them. `SamplingParams` here holds token ids only; the public `octavo.SamplingParams` holds text too.
"""

from __future__ import annotations

try:
    from octavo._core import (
        GAP_BASE,
        GAP_FIRST,
        SERVE_REQUEST,
        BlockPool,
        CacheGroup,
        CostModel,
        EncoderItem,
        Engine,
        EngineConfig,
        GraphSteps,
        KVManager,
        ManualClock,
        PackedLayout,
        PrefixChain,
        Retention,
        SamplingParams,
        StepLoop,
        StepNews,
        StepPlan,
        StepSizes,
        pack_step,
        serve,
    )
except ImportError as error:
    raise ImportError(
        f"octavo._core cannot be loaded ({error}): install the package with 'pip install .', or build it in "
        "place with 'cmake --preset dev && cmake --build --preset dev'"
    ) from error

__all__ = [
    "FINISH_REASONS",
    "GAP_BASE",
    "GAP_FIRST",
    "SERVE_REQUEST",
    "BlockPool",
    "CacheGroup",
    "CostModel",
    "EncoderItem",
    "ManualClock",
    "Engine",
    "EngineConfig",
    "GraphSteps",
    "KVManager",
    "PackedLayout",
    "PrefixChain",
    "Retention",
    "SamplingParams",
    "StepLoop",
    "StepNews",
    "StepPlan",
    "StepSizes",
    "pack_step",
    "serve",
]

# Names of the `finish` codes in the outputs of finish_step, by their number.
FINISH_REASONS = ("none", "stop", "length", "abort", "error")
