"""`octavo collect-env`: complete, and private."""

from __future__ import annotations

import json
import platform
import re

from cli.command import octavo_command

import octavo


def test_json_names_versions_cpu_and_memory() -> None:
    done = octavo_command("collect-env", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["versions"]["octavo"] == octavo.__version__
    assert report["versions"]["python"] == platform.python_version()
    assert report["versions"]["torch"]
    assert report["cpu"]["logical cores"] >= 1
    assert set(report) == {"versions", "cpu", "memory", "gpu", "build", "settings"}


def test_text_shows_the_sections() -> None:
    done = octavo_command("collect-env")
    assert done.returncode == 0, done.stderr
    for section in ("versions", "cpu", "memory", "build"):
        assert section in done.stdout.splitlines()


def test_nothing_names_the_machine_or_a_path() -> None:
    text = octavo_command("collect-env", "--json").stdout + octavo_command("collect-env").stdout
    assert platform.node() not in text
    assert not re.search(r"(?<![\w.])/(?:home|usr|root|tmp|opt|work|Users)/", text)


def test_paths_are_there_when_asked_for() -> None:
    report = json.loads(octavo_command("collect-env", "--json", "--paths").stdout)
    assert report["paths"]["octavo"].endswith("octavo")
