"""The tests that the core's contracts name exist, and every clause names one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TESTS = ROOT / "tests"
CONTRACTS = ["kv", "batch", "step", "loop", "transfer", "encoder"]


def known_names() -> set[str]:
    names: set[str] = set()
    for path in TESTS.rglob("*.cc"):
        # A long name is one literal or several side by side.
        for literals in re.findall(r'TEST_CASE\(\s*((?:"[^"]*"\s*)+)', path.read_text()):
            names.add("".join(re.findall(r'"([^"]*)"', literals)))
    for path in TESTS.rglob("*.trace"):
        names.update(re.findall(r"^case (.*?)\s*$", path.read_text(), re.M))
    for path in TESTS.rglob("test_*.py"):
        names.update(re.findall(r"^def (test_\w+)", path.read_text(), re.M))
    return names


def clauses(contract: str) -> list[str]:
    text = (ROOT / "docs" / "contracts" / f"{contract}.md").read_text()
    parts = re.split(r"^\d+\. ", text, flags=re.M)[1:]
    return [" ".join(part.split("\n## ")[0].split()) for part in parts]


@pytest.mark.parametrize("contract", CONTRACTS)
def test_every_clause_names_a_test(contract: str) -> None:
    missing = [clause for clause in clauses(contract) if not re.search(r"\*[^*]+\*", clause)]
    assert missing == []


@pytest.mark.parametrize("contract", CONTRACTS)
def test_the_tests_named_exist(contract: str) -> None:
    known = known_names()
    for clause in clauses(contract):
        evidence = " ".join(re.findall(r"\*([^*]+)\*", clause))
        for name in re.findall(r'[`"]([^`"]+)[`"]', evidence):
            command = name.startswith(("octavo-bench", "octavo-sim"))
            if name.startswith("test_") or (" " in name and not command):
                stem = name.removesuffix(" ...")
                assert any(other.startswith(stem) if stem != name else other == name for other in known), name


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_contract_is_short(contract: str) -> None:
    assert len((ROOT / "docs" / "contracts" / f"{contract}.md").read_text().splitlines()) <= 150
