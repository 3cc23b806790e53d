"""`octavo generate`: prompts from everywhere, text and JSON out."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli.command import octavo_command

from octavo.cli.main import main

Run = Callable[..., str]


@pytest.fixture
def run(model: list[str], capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `octavo generate` in this process: torch is imported once for all tests."""

    def generate(*arguments: str) -> str:
        assert main(["generate", *model, "--ignore-eos", *arguments]) == 0
        return capsys.readouterr().out

    return generate


def test_one_prompt_prints_its_completion(model: list[str]) -> None:
    done = octavo_command("generate", *model, "The KV cache", "--max_tokens", "8", "--ignore-eos")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_streamed_text_is_the_batchs_text(run: Run) -> None:
    streamed = run("What is a block?", "--max-tokens", "12")
    batched = json.loads(run("What is a block?", "--max-tokens", "12", "--json"))
    assert streamed == batched["outputs"][0]["text"] + "\n"


def test_several_prompts_print_in_order(run: Run) -> None:
    text = run("first prompt", "second prompt", "--max-tokens", "4")
    titles = [line for line in text.splitlines() if line.startswith("[")]
    assert titles == ["[0] first prompt", "[1] second prompt"]


def test_json_has_token_ids_and_logprobs(run: Run) -> None:
    lines = run("one", "two", "-n", "2", "--max-tokens", "3", "--logprobs", "2", "--json").splitlines()
    results = [json.loads(line) for line in lines]
    assert [result["prompt"] for result in results] == ["one", "two"]
    for result in results:
        assert len(result["outputs"]) == 2
        for output in result["outputs"]:
            assert len(output["logprobs"]) == len(output["token_ids"])
            assert output["finish_reason"] in ("length", "stop")


def test_prompts_come_from_files_and_stdin(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.jsonl").write_text('"three"\n{"prompt_token_ids": [5, 6]}\n')
    assert (
        len(run("--prompts-file", str(tmp_path / "a.txt"), "--json", "--max-tokens", "1").splitlines()) == 2
    )
    lines = run("--prompts-file", str(tmp_path / "b.jsonl"), "--json", "--max-tokens", "1").splitlines()
    assert json.loads(lines[1])["prompt_tokens"] == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("four\n"))
    assert json.loads(run("--json", "--max-tokens", "1"))["prompt"] == "four"


def test_a_bad_line_of_a_prompts_file_is_named(model: list[str], tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('"fine"\n[1]\n')
    done = octavo_command("generate", *model, "--prompts-file", str(tmp_path / "p.jsonl"))
    assert done.returncode == 1
    assert "line 2" in done.stderr


def test_a_prompt_that_is_too_long_is_one_line(model: list[str]) -> None:
    done = octavo_command("generate", *model, "word " * 5000, "--max-tokens", "1")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "maximum context length" in done.stderr


def test_sampling_follows_the_models_recommendation_unless_a_flag_says_otherwise(run: Run) -> None:
    greedy = [run("one", "--max-tokens", "8", "--temperature", "0"), run("one", "--max-tokens", "8")]
    assert greedy[0] == greedy[1]
    sampled = [run("one", "--max-tokens", "8", "--temperature", "1", "--seed", seed) for seed in ("1", "2")]
    assert sampled[0] != sampled[1]


@pytest.fixture
def spoken(tmp_path: Path) -> str:
    """A WAV file of 16 bits, stereo, half a second."""
    values = (np.sin(np.arange(16000) / 9)[:, None] * [9000, 3000]).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, 2, 32000, 0, "NONE", ""))
        file.writeframes(values.tobytes())
    return str(tmp_path / "a.wav")


def test_audio_files_are_written_down(
    whisper_folder: Path, spoken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--kv-cache-memory-bytes", "16MiB", "--num-threads", "1"]
    command = ["generate", str(whisper_folder), "--audio", spoken, *flags]
    assert main(command) == 0
    streamed = capsys.readouterr().out
    assert main([*command, "--audio", spoken, "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["outputs"] == second["outputs"]
    assert first["outputs"][0]["text"] + "\n" == streamed
    assert len(first["outputs"][0]["token_ids"]) > 16  # to the end, not to a script's default
    assert first["prompt_tokens"] == 3
    assert main([*command[:2], "the cat", *command[2:], "--max-tokens", "2", "--json"]) == 0
    led = json.loads(capsys.readouterr().out)
    assert (led["prompt"], len(led["outputs"][0]["token_ids"])) == ("the cat", 2)


def test_audio_that_cannot_be_is_one_line(whisper_folder: Path, spoken: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(b"ID3")
    folder = str(whisper_folder)
    for arguments, code, words in (
        (["--audio", str(tmp_path / "a.mp3")], 1, "is not a PCM WAV file"),
        (["--audio", str(tmp_path / "none.wav")], 1, "cannot read"),
        (["one", "two", "--audio", spoken], 2, "--audio goes with at most one PROMPT"),
        (["one"], 1, "has no audio, which this model needs"),
    ):
        done = octavo_command("generate", folder, *arguments, "--kv-cache-memory-bytes", "16MiB")
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
        assert words in done.stderr
