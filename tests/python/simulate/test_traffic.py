"""Traffic from a seed and from traces, and what the engine makes of it in virtual time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import core
from octavo.errors import ConfigError
from octavo.simulate import report, traffic


def requests_of(number: int, *, input_len: int = 100, output_len: int = 10, **options: Any) -> Any:
    shape = traffic.Shape(
        num_requests=number,
        input_lens=np.full(number, input_len),
        output_lens=np.full(number, output_len),
        **options,
    )
    return traffic.make_requests(shape, np.random.default_rng(0))


def serve(requests: Any, **options: Any) -> Any:
    """Every step takes a tenth of a second."""
    sizes = {"num_blocks": 2000, "max_model_len": 2048, "vocab_size": 32000, "max_num_seqs": 16}
    config = core.EngineConfig(**sizes | options)
    cost = core.CostModel.table(rows=[1], extra=[0], context=[0], seconds=[0.1])
    return core.serve(config, cost, requests)


@pytest.mark.parametrize("burstiness", [1.0, 0.2])
def test_arrivals_have_the_rate_asked_for(burstiness: float) -> None:
    requests = requests_of(20_000)
    traffic.open_loop(requests, 8.0, np.random.default_rng(1), burstiness=burstiness)
    gaps = np.diff(requests["arrival"])
    assert len(gaps) / requests["arrival"][-1] == pytest.approx(8.0, rel=0.05)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(burstiness**-0.5, rel=0.1)


def test_a_closed_loop_never_has_more_requests_than_clients() -> None:
    requests = requests_of(40)
    traffic.closed_loop(requests, 4)
    records = serve(requests)["records"]
    events = sorted([(time, 1) for time in records["arrival"]] + [(time, -1) for time in records["end"]])
    assert np.cumsum([change for _, change in events]).max() == 4


def test_a_session_grows_and_hits_what_was_said_before() -> None:
    requests = requests_of(8, prefix_len=64)
    traffic.sessions(requests, 0.5, 4, np.random.default_rng(2), think_seconds=1.0)
    result = serve(requests)
    records = result["records"]
    assert list(records["prompt_tokens"][:4]) == [164, 274, 384, 494]
    assert (records["cached_tokens"][1:4] > 100).all()
    assert (np.diff(records["arrival"][:4]) > 0).all()
    assert (records["arrival"][1:4] >= records["end"][:3]).all()


def test_without_the_prefix_cache_nothing_is_found() -> None:
    requests = requests_of(4, prefix_len=64)
    traffic.closed_loop(requests, 1)
    assert serve(requests)["prefix_hits"] == 3 * 64
    assert serve(requests, enable_prefix_caching=False)["prefix_hits"] == 0


def write_trace(path: Path, *entries: object) -> str:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return str(path)


def test_a_trace_keeps_times_lengths_and_what_is_shared(tmp_path: Path) -> None:
    entry = {"input_length": 100, "output_length": 5}
    path = write_trace(
        tmp_path / "trace.jsonl",
        {"timestamp": 3000, **entry, "session_id": "a", "input_length": 300},
        {"timestamp": 1000, **entry, "session_id": "a", "hash_ids": [1]},
        {"timestamp": 2000, **entry, "prefix_id": 7, "prefix_length": 60},
        {"timestamp": 5000, **entry},
    )
    requests = traffic.read_trace(path)
    assert list(requests["arrival"]) == [0.0, 1.0, 2.0, 4.0]
    assert list(requests["input_len"] + requests["prefix_len"]) == [100, 100, 300, 100]
    records = serve(requests)["records"]
    assert list(records["cached_tokens"]) == [0, 0, 96, 0]  # the second turn finds the first's full blocks
    assert list(traffic.read_trace(path, time_scale=0.5)["arrival"]) == [0.0, 0.5, 1.0, 2.0]


def test_prompts_share_the_blocks_that_their_hash_ids_share(tmp_path: Path) -> None:
    def entry(second: int, length: int, *hash_ids: int) -> dict[str, object]:
        return {
            "timestamp": 1000 * second,
            "input_length": length,
            "output_length": 1,
            "hash_ids": list(hash_ids),
        }

    path = write_trace(
        tmp_path / "trace.jsonl",
        entry(60, 1100, 1, 2, 5),  # two blocks of the first
        entry(0, 1600, 1, 2, 3, 4),
        entry(120, 1200, 1, 2, 5),  # and the 76 tokens that there are of the third block of the second
        entry(180, 1200, 2, 1, 5),  # other blocks come first, so nothing is shared
        entry(240, 1024, 1, 2),
        {"timestamp": 300_000, "input_length": 600, "output_length": 1},
    )
    requests = traffic.read_trace(path)
    assert list(requests["like"]) == [-1, 0, 1, -1, 0, -1]
    assert list(requests["prefix_len"]) == [0, 1024, 1100, 0, 1024, 0]
    assert list(requests["input_len"] + requests["prefix_len"]) == [1600, 1100, 1200, 1200, 1024, 600]
    # Whole blocks of 16 tokens, and never the last token.
    assert list(serve(requests)["records"]["cached_tokens"]) == [0, 1024, 1088, 0, 1008, 0]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"timestamp": 1, "input_length": 3}, "'output_length' is missing"),
        ({"timestamp": 1, "input_length": 0, "output_length": 1}, "input_length=0"),
        ({"timestamp": 1, "input_length": 2.5, "output_length": 1}, "input_length=2.5"),
        ({"timestamp": float("nan"), "input_length": 2, "output_length": 1}, "timestamp=nan"),
        ({"timestamp": 1, "input_length": 2, "output_length": 2**40}, "output_length="),
        ([1, 2], "not a JSON object"),
        ({"timestamp": 1, "input_length": 9, "output_length": 1, "hash_ids": "ab"}, "hash_ids="),
        ({"timestamp": 1, "input_length": 9, "output_length": 1, "hash_ids": [True]}, "whole numbers"),
        ({"timestamp": 1, "input_length": 513, "output_length": 1, "hash_ids": [1]}, "has 1 blocks of 512"),
    ],
)
def test_a_bad_line_of_a_trace_is_named(tmp_path: Path, entry: object, reason: str) -> None:
    good = {"timestamp": 0, "input_length": 1, "output_length": 1}
    path = write_trace(tmp_path / "trace.jsonl", good, entry)
    with pytest.raises(ConfigError, match="line 2 of .* is no request") as error:
        traffic.read_trace(path)
    assert reason in str(error.value)


def test_an_empty_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 0 requests"):
        traffic.read_trace(write_trace(tmp_path / "trace.jsonl"))


def test_the_report_counts_what_users_saw() -> None:
    requests = requests_of(3, input_len=10, output_len=3)
    requests["arrival"] = [0, 10, 20]
    summary = report.summarize(serve(requests), report.Targets(ttft=0.15, tpot=0.05))
    assert summary["ttft"]["p50"] == pytest.approx(0.1)
    assert summary["tpot"]["p99"] == pytest.approx(0.1)
    assert summary["itl"]["p50"] == pytest.approx(0.1, rel=0.02)
    assert summary["e2e"]["p90"] == pytest.approx(0.3)
    assert summary["good_share"] == 0.0  # in time for the first token, too slow for the others
    assert summary["busy"] == pytest.approx(0.9 / 20.3)
    assert summary["output_tokens_per_second"] == pytest.approx(9 / 20.3)


def test_requests_that_are_no_requests_are_refused() -> None:
    config = core.EngineConfig(num_blocks=200, max_model_len=128, vocab_size=100)
    cost = core.CostModel.table(rows=[1], extra=[0], context=[0], seconds=[0.1])
    with pytest.raises(TypeError, match="SERVE_REQUEST"):
        core.serve(config, cost, np.zeros(3))
    with pytest.raises(ValueError, match="request 0 has an empty prompt"):
        core.serve(config, cost, requests_of(1, input_len=0))
    with pytest.raises(ValueError, match="bytes_per_second"):
        core.CostModel.roofline(
            weight_bytes=1,
            flops_of_a_token=1,
            flops_of_a_sample=1,
            attention=[],
            bytes_per_second=0,
            flops_per_second=1,
            step_seconds=0,
        )
