"""The GPU tests are skipped where there is no device, or the build has no CUDA ops."""

from __future__ import annotations

import pytest
import torch

from octavo import ops


@pytest.fixture(autouse=True)
def _on_a_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if not ops.has_cuda():
        pytest.skip("octavo._ops was built without CUDA")
    torch.manual_seed(0)
