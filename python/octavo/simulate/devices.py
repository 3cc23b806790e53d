"""Devices to plan for: what their makers state, and what share of it programs reach.

Sources: NVIDIA's data sheets of H200, H100, A100 80GB and L40S (SXM where there is a choice; rates of the
tensor cores without sparsity). The shares are estimates: engines reach 60 to 78 % of the bandwidth when they
decode one request with an 8B model. Where the device is at hand, measure with `octavo bench steps`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from octavo.errors import did_you_mean, invalid

GB = 10**9
KERNELS_A_LAYER = 10  # launched one after the other; what a captured graph cannot take away


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device as the roofline sees it; rates a second."""

    name: str
    memory_bytes: int
    bandwidth: float  # bytes
    flops_16bit: float
    flops_32bit: float
    bandwidth_share: float = 0.75
    compute_share: float = 0.6
    kernel_seconds: float = 1.3e-6  # between two kernels of a graph
    step_seconds: float = 30e-6  # launch and host work that nothing hides
    runs_ahead: bool = True  # the host plans the next step while this one runs

    def seconds_of_launches(self, num_layers: int) -> float:
        """What a step costs before the first byte is read."""
        return self.step_seconds + num_layers * KERNELS_A_LAYER * self.kernel_seconds


DEVICES = {
    device.name: device
    for device in (
        Device(name="h200", memory_bytes=141 * GB, bandwidth=4.8e12, flops_16bit=989.5e12, flops_32bit=67e12),
        Device(name="h100", memory_bytes=80 * GB, bandwidth=3.35e12, flops_16bit=989.5e12, flops_32bit=67e12),
        Device(
            name="a100", memory_bytes=80 * GB, bandwidth=2.039e12, flops_16bit=312e12, flops_32bit=19.5e12
        ),
        Device(
            name="l40s", memory_bytes=48 * GB, bandwidth=0.864e12, flops_16bit=362e12, flops_32bit=91.6e12
        ),
        # Eight cores of 32 float32 operations a cycle at 4 GHz and two channels of DDR5-5600: an example.
        Device(
            name="cpu",
            memory_bytes=32 * GB,
            bandwidth=89.6e9,
            flops_16bit=1.0e12,
            flops_32bit=1.0e12,
            kernel_seconds=5e-6,
            step_seconds=500e-6,
            runs_ahead=False,
        ),
    )
}


def find_device(name: str, **changes: float | None) -> Device:
    """Return a device of the table; `changes` that are not None replace its fields. ValueError: unknown."""
    device = DEVICES.get(name.lower())
    if device is None:
        known = ", ".join(DEVICES)
        raise invalid("device", name, f"use one of {known}{did_you_mean(name, DEVICES)}")
    given = {field: value for field, value in changes.items() if value is not None}
    for field, value in given.items():
        if not 0 <= value < float("inf") or (field != "step_seconds" and value == 0):
            raise invalid(field, value, "use a positive number")
    return dataclasses.replace(device, **given)  # type: ignore[arg-type]
