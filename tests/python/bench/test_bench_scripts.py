"""What the benchmarks of a GPU compute beside the measurements themselves: bench/ without a device."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCH = Path(__file__).resolve().parents[3] / "bench"
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 2000,
    "bos_token_id": 1998,
    "eos_token_id": 1999,
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script by its name, and forgets it and its neighbours afterwards."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCH)):
            del sys.modules[name]


def spans(trace: ModuleType, *given: tuple[str, float, float]) -> Any:
    return [trace.Span(*span) for span in given]


def test_kernels_that_overlap_are_counted_once(script: Any) -> None:
    trace = script("device_trace")
    ran = spans(trace, ("a", 0, 10), ("b", 2, 14), ("c", 3, 12), ("a", 20, 25))
    assert {k.name: (k.calls, k.us) for k in trace.by_kernel(ran)} == {"a": (2, 15), "b": (1, 4), "c": (1, 0)}


def test_kernels_and_pauses_make_up_the_whole(script: Any) -> None:
    trace = script("device_trace")
    ran = spans(trace, ("a", 100, 110), ("b", 105, 120), ("a", 122, 130), ("c", 150, 160))
    long, short = trace.pauses(ran)
    assert (long, short) == (20, 2)
    assert sum(kernel.us for kernel in trace.by_kernel(ran)) + long + short == 60
    shares = [line.split()[1] for line in trace.table(ran, steps=2).splitlines()[1:]]
    assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=0.3)


def test_a_table_names_how_many_kernels_it_leaves_out(script: Any) -> None:
    trace = script("device_trace")
    ran = spans(trace, *((f"kernel{i}", 10.0 * i, 10.0 * i + i + 1) for i in range(5)))
    assert "3 other kernels" in trace.table(ran, most=2)
    assert trace.table([]) == "nothing ran on the device"


def test_whole_steps_leave_out_the_ends_of_a_trace(script: Any) -> None:
    trace = script("device_trace")
    ran = []
    for t in (0.0, 10.0, 20.0, 30.0, 40.0, 50.0):
        ran += spans(trace, ("Memcpy HtoD", t, t + 1), ("kernel", t + 2, t + 9))
    cut, count = trace.whole_steps(ran, 1)
    assert (count, cut[0].start, cut[-1].end) == (3, 10.0, 39.0)
    with pytest.raises(ValueError, match="has 0 whole steps"):
        trace.whole_steps(ran, 3)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (
            "void octavo::cuda::(anonymous namespace)::NormKernel<__nv_bfloat16, 8, true>(octavo::cuda::P)",
            "NormKernel<bfloat16, 8, true>",
        ),
        ("void at::native::index_kernel<(int)4>(int, float*)", "at::native::index_kernel<(int)4>"),
        ("Memcpy HtoD (Pinned -> Device)", "Memcpy HtoD"),
    ],
)
def test_kernel_names_are_short(script: Any, name: str, short: str) -> None:
    assert script("device_trace").short_name(name) == short


def test_an_engine_starts_from_a_written_checkpoint(script: Any, tmp_path: Path) -> None:
    load, folders = script("load"), script("model_folders")
    for name in ("Qwen3-0.6B", "Llama-3.1-8B"):  # tied and not, with head norms and without
        config = folders.CONFIGS[name] | SMALL
        folders.CONFIGS["small"] = config
        folder = folders.model_folder("small", tmp_path / name)
        written = load.write_checkpoint(folder, config, shard_bytes=300_000)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == written
        assert len(set(index["weight_map"].values())) > 1
        found = load.start(str(folder), "cpu")
        assert {"imports", "plan", "tokenizer", "weights", "first step"} <= set(found["seconds"])
        assert sum(found["seconds"].values()) <= found["first token"] + 0.01


def test_the_line_through_decode_times_is_found(script: Any) -> None:
    kernels, timing = script("kernels"), script("timing")
    cases = [
        timing.Result(part="decode", case=str(gb), us=6.0 + gb * 1e6 / 4000, gbytes=gb)
        for gb in (0.004, 0.03, 0.26, 2.1)
    ]
    fixed, speed, worst = kernels.fit(cases)
    assert (fixed, speed) == pytest.approx((6.0, 4000.0), rel=1e-6)
    assert worst < 1e-6


def test_a_result_says_how_much_faster_it_is_than_its_peer(script: Any) -> None:
    timing = script("timing")
    result = timing.Result(part="rows", case="x", us=2.0, gbytes=0.004, error=1e-3, peer="torch", peer_us=3.0)
    assert "2000 GB/s" in result.line()
    assert result.line().split()[-2:] == ["1.50", "torch"]
    assert result.as_json()["ratio"] == 1.5
    assert "of_copy" not in result.as_json()


def test_a_token_that_float64_cuts_away_is_an_error(script: Any) -> None:
    rows = script("kernels_rows")
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).repeat(4, 1)
    token = torch.tensor([1, 2, 3, 0])
    wrong = {
        rows.Setting(temperature=0.0): 0.75,
        rows.Setting(): 0.0,
        rows.Setting(top_k=2): 0.5,
        rows.Setting(temperature=1.0, top_p=0.65): 0.5,
        rows.Setting(temperature=1.0, min_p=0.1): 0.25,
    }
    for setting, share in wrong.items():
        assert rows.not_allowed(token, logits, setting) == share, setting


def test_pairs_of_queries_and_keys_are_counted(script: Any) -> None:
    attention = script("kernels_attention")
    cell = attention.Cell("mixed", "", ((1, 5), (3, 4)), heads=2, kv_heads=1, head_dim=8)
    assert cell.flop == 4 * (5 + 2 + 3 + 4) * 2 * 8
    assert cell.kv_bytes == 2 * 2 * 8 * (5 + 4)
