"""What a plan is made for: this machine's CPU or GPU, or one described by its memory. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.config import DeviceConfig
from octavo.errors import invalid
from octavo.plan import machine

# Of the memory available on a CPU, which is shared with everything else that runs there; of all of a GPU's.
DEFAULT_SHARES = {"cpu": 0.5, "cuda": 0.9}
# The driver's context and the modules of torch and its libraries, on a GPU that is not here to be asked.
CUDA_CONTEXT_BYTES = 768 << 20


@dataclass(frozen=True)
class Target:
    """A device and its memory."""

    kind: str  # cpu or cuda
    name: str
    memory: int  # bytes of which a share is used
    in_use: int = 0  # bytes of these that are taken already, the CUDA context's among them
    why: str | None = None  # None: the user said so

    def budget(self, share: float | None) -> int:
        """Bytes that Octavo may take."""
        return max(int(self.memory * self.share(share)) - self.in_use, 0)

    def share(self, given: float | None) -> float:
        """The share of the memory to use."""
        return DEFAULT_SHARES[self.kind] if given is None else given


def choose_target(device: DeviceConfig, memory: int | None = None) -> Target:
    """Where steps will run. `memory`: plan for another machine, with this much.

    Raises ValueError for device="cuda" where nothing can run on a GPU and no memory is given.
    """
    if device.device == "cpu":
        return _cpu(memory, None)
    if device.device == "cuda" and memory is not None:
        return Target("cuda", "GPU", memory, CUDA_CONTEXT_BYTES)
    obstacle = gpu_obstacle()
    if obstacle is not None:
        if device.device == "cuda":
            raise invalid("device", "cuda", f"{obstacle}, or use device='cpu'")
        return _cpu(memory, obstacle)
    free, total, name = _gpu_memory()
    why = f"this build has CUDA ops and there is a GPU ({name})" if device.device == "auto" else None
    if memory is not None:
        return Target("cuda", name, memory, CUDA_CONTEXT_BYTES, why)
    return Target("cuda", name, total, total - free, why)


def gpu_obstacle() -> str | None:
    """Why nothing can run on a GPU here, with the remedy; None: it can. Quick where there is no driver."""
    if not has_cuda_ops():
        return "this build has no CUDA ops: install with pip install . -C cmake.define.OCTAVO_CUDA=ON"
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return "this machine has no NVIDIA GPU"
    torch = _torch()
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU: install a torch with CUDA and check nvidia-smi"
    return None


def has_cuda_ops() -> bool:
    """Whether octavo._ops was built with CUDA."""
    try:
        from octavo import _ops
    except ImportError:  # nothing is built: a plan can be made all the same
        return False
    return bool(getattr(_ops, "has_cuda", lambda: False)())


def _cpu(memory: int | None, why: str | None) -> Target:
    available = machine.available_memory() if memory is None else memory
    return Target("cpu", machine.cpu_name(), available, 0, why)


def _gpu_memory() -> tuple[int, int, str]:
    """Free bytes, all bytes and the name of the current GPU. Makes the CUDA context, which then counts."""
    cuda = _torch().cuda
    free, total = cuda.mem_get_info()
    return int(free), int(total), str(cuda.get_device_name())


def _torch() -> Any:
    import torch  # here, because a plan for a CPU or for another machine needs none

    return torch
