"""The gate on register spills can fail."""

from __future__ import annotations

import importlib.util
import sys

from style_source import ROOT

_SPEC = importlib.util.spec_from_file_location("ptxas", ROOT / ".ci/ptxas.py")
assert _SPEC is not None and _SPEC.loader is not None
ptxas = importlib.util.module_from_spec(_SPEC)
sys.modules["ptxas"] = ptxas
_SPEC.loader.exec_module(ptxas)

LOG = """
ptxas info    : Compiling entry function '_Z1kPf' for 'sm_80'
ptxas info    : Function properties for _Z1kPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 360 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1kPf' for 'sm_90a'
ptxas info    : Function properties for _Z1kPf
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 360 bytes cmem[0]
"""


def test_a_kernel_that_spills_is_named() -> None:
    kernels = ptxas.read_kernels(LOG)
    assert [(kernel.arch, kernel.spills, kernel.registers) for kernel in kernels] == [
        ("sm_80", 0, 32),
        ("sm_90a", 16, 255),
    ]
    assert ptxas.complaints(kernels, ["sm_80", "sm_90a"]) == ["_Z1kPf for sm_90a spills 16 bytes"]


def test_an_architecture_without_kernels_is_named() -> None:
    assert ptxas.complaints([], ["sm_80"]) == ["no kernel was built for sm_80"]


def test_what_ptxas_could_not_do_is_repeated() -> None:
    refusal = "ptxas warning : (C7508) Potential Performance Loss: 'setmaxnreg' ignored"
    assert ptxas.read_refusals(LOG) == []
    assert ptxas.read_refusals(refusal + "\n" + LOG) == [refusal]
