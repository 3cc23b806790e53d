"""Whether the layers that are being made will compute a row alike in any company."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_INVARIANT: ContextVar[bool] = ContextVar("batch_invariant", default=False)


@contextmanager
def batch_invariance(wanted: bool = True) -> Iterator[None]:
    """Layers that are made within give a row the same bits in any batch and any chunk, if `wanted`. They ask
    once, when they are made: nothing is decided in a step.
    """
    token = _INVARIANT.set(wanted)
    try:
        yield
    finally:
        _INVARIANT.reset(token)


def is_wanted() -> bool:
    """Whether a layer that is made now has to be batch-invariant."""
    return _INVARIANT.get()
