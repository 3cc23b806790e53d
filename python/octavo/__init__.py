"""Octavo: an LLM inference engine. `octavo.LLM(model).generate(prompts)` is the shortest way in.

The names below are loaded when first used, so that `import octavo` costs milliseconds and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from octavo.version import __version__

if TYPE_CHECKING:
    from octavo.engine.llm import LLM
    from octavo.outputs import CompletionOutput, Logprob, RequestOutput
    from octavo.prompts import KvRange, KvRetention, MediaPrompt, TextPrompt, TokensPrompt
    from octavo.sampling_params import RequestOutputKind, SamplingParams

__all__ = [
    "LLM",
    "CompletionOutput",
    "KvRange",
    "KvRetention",
    "Logprob",
    "MediaPrompt",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "TextPrompt",
    "TokensPrompt",
    "__version__",
]

_HOMES = {
    "LLM": "octavo.engine.llm",
    "CompletionOutput": "octavo.outputs",
    "KvRange": "octavo.prompts",
    "KvRetention": "octavo.prompts",
    "Logprob": "octavo.outputs",
    "MediaPrompt": "octavo.prompts",
    "RequestOutput": "octavo.outputs",
    "RequestOutputKind": "octavo.sampling_params",
    "SamplingParams": "octavo.sampling_params",
    "TextPrompt": "octavo.prompts",
    "TokensPrompt": "octavo.prompts",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
