"""The files that the style rules read, and how they are taken apart."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CPP_SUFFIXES = frozenset({".h", ".cc", ".cu", ".cuh"})
CODE_SUFFIXES = CPP_SUFFIXES | {".py", ".sh", ".cmake"}
TEXT_SUFFIXES = CODE_SUFFIXES | {".md", ".txt", ".toml", ".json", ".yml", ".yaml", ".in", ".trace", ""}

# Comments and literals, so that no brace or word in them is taken for code.
_CPP_NOISE = re.compile(
    r"""R"(?P<mark>[^()\\ ]{0,16})\(.*?\)(?P=mark)"      # a raw string
        | //[^\n]*
        | /\*.*?\*/
        | "(?:\\.|[^"\\\n])*"
        | (?<!\w)'(?:\\.|[^'\\\n])+'                     # a character, and not the mark in 1'000
    """,
    re.DOTALL | re.VERBOSE,
)
_CPP_SCOPE = re.compile(r"\b(?:namespace|class|struct|union|enum|extern)\b")


@dataclass(frozen=True)
class Source:
    """One file: its path from the repository's root, with slashes, and its text."""

    path: str
    text: str

    @property
    def suffix(self) -> str:
        return Path(self.path).suffix

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


@dataclass(frozen=True)
class Function:
    name: str
    lines: int


def repository_sources() -> list[Source]:
    """Every text file that git tracks or would, so that a new file is checked before its first commit.

    The inputs of the fuzz targets are bytes, whatever they are called.
    """
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = []
    for name in sorted(filter(None, listed.split("\0"))):
        path = ROOT / name
        if path.suffix in TEXT_SUFFIXES and path.is_file() and not name.startswith("tests/fuzz/corpus/"):
            found.append(Source(name, path.read_text(encoding="utf-8")))
    return found


def strip_cpp(text: str) -> str:
    """The same text, lines kept, with comments and literals blanked."""
    return _CPP_NOISE.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def functions(source: Source) -> Iterator[Function]:
    if source.suffix == ".py":
        yield from _python_functions(source.text)
    elif source.suffix in CPP_SUFFIXES:
        yield from _cpp_functions(source.text)


def _python_functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(node.name, (node.end_lineno or node.lineno) - node.lineno + 1)


def _cpp_functions(text: str) -> Iterator[Function]:
    """Functions of namespaces and classes; what is nested in a function counts as part of it.

    This is a scan of braces, not a parser: a brace opens a function when its head has a parameter list and is
    neither a scope nor an initialiser. Preprocessor lines are skipped.
    """
    code = re.sub(
        r"^[ \t]*#(?:\\\n|[^\n])*", lambda m: re.sub(r"[^\n]", " ", m.group()), strip_cpp(text), flags=re.M
    )
    head_start = 0
    depth_in_function = 0
    opened: tuple[str, int] = ("", 0)
    for match in re.finditer(r"[{};]", code):
        position = match.start()
        symbol = match.group()
        if depth_in_function:
            depth_in_function += {"{": 1, "}": -1, ";": 0}[symbol]
            if depth_in_function == 0:
                name, first = opened
                yield Function(name, code.count("\n", 0, position) - first + 1)
        elif symbol == "{":
            head = code[head_start:position]
            if "(" in head and not head.rstrip().endswith("=") and not _CPP_SCOPE.match(head.strip()):
                skipped = len(head) - len(head.lstrip())
                opened = (_cpp_name(head), code.count("\n", 0, head_start + skipped))
                depth_in_function = 1
        head_start = position + 1


def _cpp_name(head: str) -> str:
    words = re.findall(r"[~\w:]+(?=\s*\()", head)
    return str(words[0]) if words else "?"
