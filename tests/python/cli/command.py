"""Runs the real command in a process of its own, as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import octavo

PACKAGE_PARENT = Path(octavo.__file__).resolve().parent.parent


def environment(**extra: str) -> dict[str, str]:
    """This process's environment with the package under test first and no variable that changes output."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "OCTAVO_LOG_LEVEL")}
    paths = [str(PACKAGE_PARENT), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), **extra}


def octavo_command(
    *arguments: str, stdin: str | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    """`octavo ARGUMENTS`; `extra` are environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "octavo", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        input=stdin if stdin is not None else "",
        env=environment(**extra),
        timeout=120,
        check=False,
    )


def python_code(code: str) -> subprocess.CompletedProcess[str]:
    """A Python program in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
    )
