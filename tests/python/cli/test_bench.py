"""`octavo bench` on a folder with config.json alone, and the lengths of its synthetic requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.cli.main import main
from octavo.cli.workload import make_workload

SMALL_POOL = ("--kv-cache-memory-bytes", "16MiB")


def test_throughput_counts_its_tokens(config_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = config_folder / "result.json"
    sizes = ["--num-prompts", "6", "--input-len", "20", "--output-len", "5", "--prefix-len", "64"]
    arguments = ["bench", "throughput", str(config_folder), *sizes, *SMALL_POOL, "--output-json", str(output)]
    assert main(arguments) == 0
    result = json.loads(output.read_text())
    assert result["num_requests"] == 6
    assert result["prompt_tokens"] == 6 * 84
    assert result["output_tokens"] == 30
    assert result["tokens_per_second"] == pytest.approx((6 * 84 + 30) / result["elapsed_time"])
    assert str(config_folder.parent) not in output.read_text()
    captured = capsys.readouterr()
    assert "output tokens/s" in captured.out
    assert "random weights" in captured.err


def test_latency_gives_percentiles(config_folder: Path) -> None:
    output = config_folder / "result.json"
    sizes = ["--batch-size", "2", "--input-len", "8", "--output-len", "4"]
    repeats = ["--num-iters", "3", "--num-iters-warmup", "1"]
    arguments = ["bench", "latency", str(config_folder), *sizes, *repeats, *SMALL_POOL]
    assert main([*arguments, "--output-json", str(output)]) == 0
    result = json.loads(output.read_text())
    assert len(result["latencies"]) == 3
    assert min(result["latencies"]) <= result["percentiles"]["50"] <= max(result["latencies"])


def test_a_request_beyond_the_context_is_a_usage_error(
    config_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "latency", str(config_folder), "--input-len", "8k", *SMALL_POOL]) == 2
    assert "--max-model-len" in capsys.readouterr().err


def test_sharegpt_like_lengths_have_the_means_asked_for() -> None:
    work = make_workload("sharegpt-like", 1000, 220, 200, vocab_size=1000)
    assert work.prompt_tokens / 1000 == pytest.approx(220, rel=0.01)
    assert work.output_tokens / 1000 == pytest.approx(200, rel=0.01)
    assert len({len(prompt) for prompt in work.prompts}) > 100


def test_the_seed_decides_the_prompts() -> None:
    def make(seed: int) -> object:
        return make_workload("random", 4, 16, 4, prefix_len=8, vocab_size=1000, seed=seed)

    assert make(1) == make(1) != make(2)


def test_a_prefix_is_shared_by_all_prompts() -> None:
    work = make_workload("random", 4, 16, 4, prefix_len=8, vocab_size=1000)
    assert len({tuple(prompt[:8]) for prompt in work.prompts}) == 1
    assert len({tuple(prompt[8:]) for prompt in work.prompts}) == 4
