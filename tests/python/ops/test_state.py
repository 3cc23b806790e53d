"""The ops of recurrent layers through Python, against torch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ops.reference import DTYPES, TOLERANCE, close

from octavo import ops

SIZES = (5, 1, 9)  # tokens of each row
SOURCE = torch.tensor([-1, 2, 3], dtype=torch.int32)  # from zero, in place, from a snapshot
TARGET = torch.tensor([1, 2, 4], dtype=torch.int32)
START = torch.tensor([0, *SIZES]).cumsum(0).int()
BLOCKS = 5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def past_of(state: torch.Tensor, row: int) -> torch.Tensor:
    """The state in float64 that a row starts from."""
    source = int(SOURCE[row])
    return state[source].double() if source >= 0 else torch.zeros_like(state[0], dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("taps", [4, 3])
def test_causal_conv1d_equals_torch_in_float64(dtype: torch.dtype, taps: int) -> None:
    wide = torch.randn(sum(SIZES), 300).to(dtype)
    x = wide[:, 100:240]  # as it comes out of a fused projection
    weight, bias = torch.randn(140, 1, taps).to(dtype), torch.randn(140).to(dtype)
    state = torch.randn(BLOCKS, taps - 1, 140).to(dtype)
    before, out = state.clone(), torch.empty(sum(SIZES), 140, dtype=dtype)
    ops.causal_conv1d(out, x, weight.squeeze(1), bias, state, START, SOURCE, TARGET)
    for row, part in enumerate(x.split(SIZES)):
        seen = torch.cat([past_of(before, row), part.double()])
        want = F.silu(F.conv1d(seen.T[None], weight.double(), bias.double(), groups=140))
        close(out[START[row] : START[row + 1]], want[0].T)
        assert torch.equal(state[TARGET[row]], seen[1 - taps :].to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_ssm_scan_equals_the_recurrence_in_float64(dtype: torch.dtype) -> None:
    heads, groups, dim, size = 4, 2, 24, 16
    x = torch.randn(sum(SIZES), heads, dim).to(dtype)
    dt, b, c = (
        torch.randn(sum(SIZES), *shape).to(dtype) for shape in ((heads,), (groups, size), (groups, size))
    )
    a_log, dt_bias, skip = (torch.randn(heads).to(dtype) for _ in range(3))
    state = torch.randn(BLOCKS, heads, size, dim)
    before, out = state.clone(), torch.empty_like(x)
    ops.ssm_scan(out, x, dt, b, c, a_log, dt_bias, skip, state, START, SOURCE, TARGET)
    step = F.softplus(dt.double() + dt_bias.double())
    decay = (-a_log.double().exp() * step).exp()
    b64, c64 = (v.double().repeat_interleave(heads // groups, 1) for v in (b, c))
    for row in range(len(SIZES)):
        held = past_of(before, row)
        for t in range(int(START[row]), int(START[row + 1])):
            added = step[t, :, None, None] * b64[t, :, :, None] * x[t, :, None, :].double()
            held = held * decay[t, :, None, None] + added
            want = (held * c64[t, :, :, None]).sum(1) + skip.double()[:, None] * x[t].double()
            tolerance = TOLERANCE[dtype]
            torch.testing.assert_close(out[t].double(), want, rtol=tolerance, atol=8 * tolerance)
        torch.testing.assert_close(state[TARGET[row]].double(), held, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_rms_norm_equals_torch_in_float64(dtype: torch.dtype) -> None:
    x, gate, weight = (
        torch.randn(6, 96).to(dtype),
        torch.randn(6, 300).to(dtype)[:, 7:103],
        torch.randn(96).to(dtype),
    )
    out = torch.empty_like(x)
    ops.gated_rms_norm(out, x, gate, weight, 3, 1e-5)
    product = (x.double() * F.silu(gate.double())).view(6, 3, 32)
    close(out, F.rms_norm(product, (32,), None, 1e-5).view(6, 96) * weight.double())


def test_state_mapping_and_its_errors() -> None:
    table = torch.tensor([[3, 0, 4, 0], [7, 8, 0, 0]], dtype=torch.int32)
    line, length = torch.tensor([1, 0, 0], dtype=torch.int32), torch.tensor([5, 1, 12], dtype=torch.int32)
    source, target = torch.empty(3, dtype=torch.int32), torch.empty(3, dtype=torch.int32)
    start = torch.tensor([0, 5, 6, 14], dtype=torch.int32)
    ops.state_mapping(source, target, start, line, length, table, 4)
    assert (source.tolist(), target.tolist()) == ([-1, -1, 3], [8, 3, 4])
    length[2] = 16
    with pytest.raises(ValueError, match="block_table holds no block at entry 1 of row 2"):
        ops.state_mapping(source, target, start, line, length, table, 4)
