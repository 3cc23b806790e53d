"""Which module runs an op, and how a CPU op runs."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

import octavo._ops as _ops

_backends: dict[str, ModuleType] = {"cpu": _ops}
if _ops.has_cuda():
    _backends["cuda"] = _ops


def register_backend(device_type: str, module: ModuleType) -> None:
    """Makes ``module``, which has the functions of ``octavo.ops``, the backend of a type of device."""
    _backends[device_type] = module


def backend(tensor: Tensor) -> ModuleType:
    """The module whose functions run on the tensor's device. Raises ``ValueError`` where there is none."""
    if tensor.is_cpu:
        return _ops
    device = tensor.device.type
    if device not in _backends:
        raise ValueError(
            f"no ops for device {device!r}: this build has {sorted(_backends)}; move the tensors there"
            + (" or install from source with -C cmake.define.OCTAVO_CUDA=ON" if device == "cuda" else "")
        )
    return _backends[device]


def has_cuda() -> bool:
    """Whether this build has the CUDA ops. Says nothing about a device."""
    return _ops.has_cuda()


def set_num_threads(n: int) -> None:
    """How many threads a CPU op may use; 0 follows ``torch.set_num_threads``."""
    _ops.set_num_threads(n)


def num_threads() -> int:
    """How many threads a CPU op may use now."""
    return _ops.num_threads()


def thread_backend() -> str:
    """``openmp`` where the ops borrow torch's OpenMP team, ``pool`` where they run a pool of their own."""
    return _ops.thread_backend()


def isa() -> str:
    """The instruction set of the CPU ops: ``avx512``, ``avx2`` or ``base`` (SSE2 or NEON)."""
    return _ops.isa()


def set_isa(name: str) -> None:
    """Chooses the instruction set, for tests. Raises ``RuntimeError`` where the machine or the build lacks
    it.
    """
    _ops.set_isa(name)


def stream_queue(device: int, stream: int, slots: int) -> _ops.StreamQueue:
    """A CUDA stream as octavo.core.GraphSteps launches on it, by the queue's ``address``; ``slots``: how many
    steps may be marked in it. Raises ``RuntimeError`` in a build without CUDA.
    """
    return _ops.StreamQueue(device, stream, slots)
