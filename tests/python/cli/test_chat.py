"""`octavo chat`: one question, and a conversation through a pipe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from cli.command import environment, octavo_command

QUESTION = "what is paged attention"


def test_one_question_streams_an_answer_and_exits(tiny: str) -> None:
    done = octavo_command("chat", tiny, QUESTION)
    assert done.returncode == 0, done.stderr
    assert "block" in done.stdout.lower()
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_stats_are_printed_when_asked_for(tiny: str) -> None:
    done = octavo_command("chat", tiny, QUESTION, "--stats", "--max-tokens", "5")
    assert done.returncode == 0, done.stderr
    assert "TTFT" in done.stderr
    assert "5 tokens" in done.stderr
    assert "TTFT" not in done.stdout


def test_a_conversation_reads_questions_and_commands(tiny: str) -> None:
    lines = [
        QUESTION,
        "/stats",
        "/params max_tokens=3 temperature=0",
        "/parms",
        "/reset",
        "/system Answer briefly.",
        '"""',
        "two",
        "lines",
        '"""',
        "/help",
        "/exit",
        "never read",
    ]
    done = octavo_command("chat", tiny, stdin="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    assert "answers 1" in done.stdout
    assert "max_tokens = 3" in done.stdout
    assert "did you mean '/params'?" in done.stderr
    assert "the conversation is empty" in done.stderr
    assert "/reset" in done.stdout
    assert "never read" not in done.stdout


def test_the_second_turn_finds_the_first_in_the_cache(tiny: str) -> None:
    done = octavo_command("chat", tiny, "--stats", stdin=f"{QUESTION}\n{QUESTION}\n")
    assert done.returncode == 0, done.stderr
    first, second = [line for line in done.stderr.splitlines() if "TTFT" in line]
    assert "cached" not in first
    assert "cached" in second


def test_a_question_too_long_for_the_context_ends_only_itself(tiny: str) -> None:
    done = octavo_command("chat", tiny, stdin="word " * 5000 + f"\n{QUESTION}\n")
    assert done.returncode == 0
    assert "maximum context length" in done.stderr
    assert done.stdout.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_the_command_quietly(tiny: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "octavo", "chat", tiny, QUESTION, "--ignore-eos"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == b""
    assert time.monotonic() - start < 10
