"""`octavo chat`: one question, and a conversation through a pipe."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

import pytest
from cli.command import environment, octavo_command

QUESTION = "what is paged attention"


def test_one_question_prints_its_answer_and_exits(tiny: str) -> None:
    done = octavo_command("chat", tiny, QUESTION)
    assert done.returncode == 0, done.stderr
    assert "block" in done.stdout.lower()
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_stats_are_printed_when_asked_for(model: list[str]) -> None:
    done = octavo_command("chat", *model, QUESTION, "--stats", "--max-tokens", "5", "--ignore-eos")
    assert done.returncode == 0, done.stderr
    assert "TTFT" in done.stderr
    assert "5 tokens" in done.stderr
    assert "TTFT" not in done.stdout


def test_a_conversation_reads_questions_and_commands(model: list[str]) -> None:
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
    done = octavo_command("chat", *model, "--max-tokens", "20", stdin="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    assert "answers 1" in done.stdout
    assert "max_tokens = 3" in done.stdout
    assert "did you mean '/params'?" in done.stderr
    assert "the conversation is empty" in done.stderr
    assert "/reset" in done.stdout
    assert "never read" not in done.stdout


def test_the_second_turn_finds_the_first_in_the_cache(model: list[str]) -> None:
    done = octavo_command("chat", *model, "--stats", "--max-tokens", "20", stdin=f"{QUESTION}\n{QUESTION}\n")
    assert done.returncode == 0, done.stderr
    first, second = [line for line in done.stderr.splitlines() if "TTFT" in line]
    assert "cached" not in first
    assert "cached" in second


def test_a_question_too_long_for_the_context_ends_only_itself(model: list[str]) -> None:
    done = octavo_command(
        "chat", *model, "--max-tokens", "9", "--ignore-eos", stdin="word " * 5000 + f"\n{QUESTION}\n"
    )
    assert done.returncode == 0
    assert "maximum context length" in done.stderr
    assert done.stdout.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_the_command_quietly(model: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "octavo", "chat", *model, QUESTION, "--ignore-eos"],
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


def test_on_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves(model: list[str]) -> None:
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:  # the child becomes the command; its terminal is the test's
        os.execve(
            sys.executable,
            [sys.executable, "-m", "octavo", "chat", *model, "--ignore-eos"],
            environment(TERM="xterm", COLUMNS="200"),
        )
    screen = Screen(terminal)
    screen.wait_for(">>> ")
    os.write(terminal, b"hello\n")
    screen.wait_for("\n", more=40)
    os.write(terminal, b"\x03")
    screen.wait_for("stopped")
    screen.wait_for(">>> ")
    os.write(terminal, b"/stats\n")
    screen.wait_for("answers 1")
    screen.wait_for(">>> ")
    os.write(terminal, b"\x04")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


class Screen:
    """What a terminal shows, read until something appears."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._unread = ""

    def wait_for(self, text: str, *, more: int = 0, seconds: float = 60) -> None:
        """Reads on until `text` has come, and `more` characters after it."""
        end = time.monotonic() + seconds
        while (at := self._unread.find(text)) < 0 or len(self._unread) < at + len(text) + more:
            assert time.monotonic() < end, f"no {text!r} in {self._unread!r}"
            if select.select([self._terminal], [], [], 1)[0]:
                self._unread += os.read(self._terminal, 4096).decode(errors="replace")
        self._unread = self._unread[at + len(text) :]
