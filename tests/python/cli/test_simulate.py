"""`octavo simulate` and the cost models that `octavo bench steps` makes for it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.main import main

SMALL = ("--num-requests", "30", "--input-len", "50", "--output-len", "10")
FEW_STEPS = ("--rows", "1,4", "--extra", "0,32", "--context", "0,64", "--repeats", "2")


def simulate(folder: Path, *arguments: str) -> dict[str, Any]:
    output = folder / "report.json"
    assert main(["simulate", str(folder), *SMALL, *arguments, "--json", str(output)]) == 0
    report: dict[str, Any] = json.loads(output.read_text())
    return report


def test_a_faster_device_is_faster(config_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast = simulate(config_folder, "--device", "h200", "--traffic", "closed", "--clients", "4")
    slow = simulate(config_folder, "--device", "cpu", "--traffic", "closed", "--clients", "4")
    assert fast["requests"] == fast["finished"] == 30
    assert fast["output_tokens_per_second"] > 2 * slow["output_tokens_per_second"]
    assert fast["ttft"]["p50"] < slow["ttft"]["p50"]
    assert str(config_folder.parent) not in json.dumps(fast)
    assert "to first token" in capsys.readouterr().out


def test_half_the_bandwidth_takes_longer(config_folder: Path) -> None:
    whole = simulate(config_folder, "--device", "cpu", "--step-us", "0")
    half = simulate(config_folder, "--device", "cpu", "--step-us", "0", "--bandwidth-share", "0.001")
    assert half["tpot"]["p50"] > whole["tpot"]["p50"]


@pytest.mark.parametrize("kind", ["poisson", "sessions", "closed"])
def test_a_seed_gives_the_same_run(config_folder: Path, kind: str) -> None:
    speed = ("--clients", "3") if kind == "closed" else ("--rate", "50")
    arguments = ("--device", "a100", "--traffic", kind, *speed, "--prefix-len", "32")
    once = simulate(config_folder, *arguments, "--seed", "3")
    assert once == simulate(config_folder, *arguments, "--seed", "3")
    assert once != simulate(config_folder, *arguments, "--seed", "4")


def test_a_trace_is_served(config_folder: Path) -> None:
    trace = config_folder / "trace.jsonl"
    line = {"timestamp": 0, "input_length": 20, "output_length": 4}
    trace.write_text("".join(json.dumps({**line, "timestamp": 100 * i}) + "\n" for i in range(5)))
    command = ["simulate", str(config_folder), "--device", "l40s", "--trace", str(trace)]
    output = config_folder / "report.json"

    def report_of(*arguments: str) -> dict[str, Any]:
        assert main([*command, *arguments, "--json", str(output)]) == 0
        report: dict[str, Any] = json.loads(output.read_text())
        return report

    report = report_of()
    assert report["finished"] == 5
    assert report["workload"] == {"time_scale": 1.0, "trace": True}
    assert report["offered_requests_per_second"] == pytest.approx(10)
    fast = report_of("--rate", "64", "--num-requests", "4")
    assert fast["finished"] == 4
    assert fast["workload"] == {"time_scale": 1.0, "trace": True, "rate": 64.0, "num_requests": 4}
    assert fast["offered_requests_per_second"] == pytest.approx(64)


def test_who_asks_for_too_much_is_told(config_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = ("--device", "cpu", "--step-us", "100000", "--max-num-seqs", "2", "--rate", "20")
    report = simulate(config_folder, *slow, "--num-requests", "200", "--slo-ttft", "0.5")
    assert report["overloaded"]
    assert report["load"]["waiting"]["most"] > 100
    assert report["goodput_requests_per_second"] < report["requests_per_second"]
    assert "more arrives than is served" in capsys.readouterr().err
    assert not simulate(config_folder, "--device", "h200", "--rate", "5")["overloaded"]


def test_a_measured_cost_model_is_used(config_folder: Path) -> None:
    model = config_folder / "cost.json"
    pool = ("--kv-cache-memory-bytes", "16MiB", "--num-threads", "1")
    assert main(["bench", "steps", str(config_folder), "--cost-model", str(model), *FEW_STEPS, *pool]) == 0
    table = json.loads(model.read_text())
    assert table["rows"] == [1, 4]
    assert len(table["seconds"]) == 8
    assert min(table["seconds"]) > 0
    report = simulate(config_folder, "--cost-model", str(model), *pool[:2])
    assert report["finished"] == 30
    table["seconds"] = [1000 * value for value in table["seconds"]]
    model.write_text(json.dumps(table))
    slower = simulate(config_folder, "--cost-model", str(model), *pool[:2])
    assert slower["tpot"]["p50"] > 100 * report["tpot"]["p50"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "give --device NAME or --cost-model FILE"),
        (("--device", "h200", "--cost-model", "x"), "one of them"),
        (("--device", "h20"), "did you mean"),
        (("--device", "h200", "--rate", "0"), "rate=0.0"),
        (("--device", "h200", "--trace", "nowhere.jsonl"), "cannot be read"),
        (("--cost-model", "nowhere.json"), "cannot be read"),
        (("--device", "h200", "--bandwidth-share", "-1"), "bandwidth_share=-1.0"),
        (("--device", "h200", "--slo-ttft", "-1"), "slo_ttft=-1.0"),
        (("--device", "h200", "--traffic", "closed", "--rate", "3"), "--rate changes nothing with --traffic"),
        (("--device", "h200", "--trace", "x", "--turns", "3"), "--turns changes nothing with --trace"),
        (("--device", "h200", "--trace", "x", "--traffic", "closed"), "--traffic or --trace"),
        (("--device", "h200", "--trace", "x", "--rate", "3", "--time-scale", "2"), "--rate or --time-scale"),
    ],
)
def test_a_wrong_command_line_says_what_to_change(
    config_folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert main(["simulate", str(config_folder), *arguments]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{}", "[1]", "no", '{"format": "octavo-cost-1", "rows": [1]}'])
def test_a_file_that_is_no_cost_model_is_refused(
    config_folder: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    model = config_folder / "cost.json"
    model.write_text(text)
    assert main(["simulate", str(config_folder), "--cost-model", str(model)]) == 2
    assert "cost.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--rows", "9999"), "--rows has"),
        (("--extra", "16"), "0 among them"),
        (("--context", "64k"), "--context has"),
        (("--rows", "64", "--context", "1024"), "raise --kv-cache-memory-bytes"),
        (("--repeats", "0"), "--repeats is 0"),
    ],
)
def test_steps_that_the_engine_cannot_make_are_refused(
    config_folder: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], reason: str
) -> None:
    arguments = ["bench", "steps", str(config_folder), "--cost-model", "never.json", *flags]
    assert main([*arguments, "--kv-cache-memory-bytes", "16MiB"]) == 2
    assert reason in capsys.readouterr().err


def test_a_plot_is_drawn_or_says_what_is_missing(
    config_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = config_folder / "run.png"
    code = main(["simulate", str(config_folder), *SMALL, "--device", "h100", "--plot", str(picture)])
    if importlib.util.find_spec("matplotlib"):
        assert code == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
    else:
        assert code == 1
        assert "pip install matplotlib" in capsys.readouterr().err
