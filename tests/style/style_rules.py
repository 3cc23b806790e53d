"""The rules of the house that a program can check. Each takes sources and yields violations."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from style_source import CODE_SUFFIXES, CPP_SUFFIXES, Source, functions, strip_cpp

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 70

_TORCH_OR_PYTHON = re.compile(r'#\s*include\s*[<"](torch/|ATen/|c10/|Python\.h|pybind11/|nanobind/)')
_CUDA_HEADER = re.compile(r'#\s*include\s*[<"](cuda|cublas|nccl|cooperative_groups)')
_NOT_CPP = re.compile(r"\basm\b|<<<|\bextern\s+__shared__|__CUDA_ARCH__")
_PICKLES = frozenset({"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve"})
_READ_THE_ENVIRONMENT = frozenset({"python/octavo/env.py", "python/octavo/cli/collect_env.py"})
# Folders of one machine: someone's home or a place where only that machine has something.
_MACHINE_PATH = re.compile(r"(?<![\w.~$}/<-])/(?:home|root|Users|work)/[\w.-]+|/opt/(?:wheels|pypi)")
_UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME)\b")


@dataclass(frozen=True)
class Violation:
    """`subject` is what the ratchet file names: a path, or path:function."""

    rule: str
    subject: str
    detail: str
    size: int = 0


def check_file_length(sources: Iterable[Source]) -> Iterator[Violation]:
    """No file over 600 lines. Generated stubs are not read by people."""
    for source in sources:
        if source.suffix in CODE_SUFFIXES and len(source.lines) > MAX_FILE_LINES:
            yield Violation("file-length", source.path, f"{len(source.lines)} lines", len(source.lines))


def check_function_length(sources: Iterable[Source]) -> Iterator[Violation]:
    for source in sources:
        for function in functions(source):
            if function.lines > MAX_FUNCTION_LINES:
                subject = f"{source.path}:{function.name}"
                yield Violation("function-length", subject, f"{function.lines} lines", function.lines)


def check_foreign_headers(sources: Iterable[Source]) -> Iterator[Violation]:
    """cpp/ knows no CUDA, Python or torch; a kernel knows no Python or torch; the bindings know no torch."""
    for source in sources:
        if source.suffix not in CPP_SUFFIXES:
            continue
        for line in source.lines:
            binding = source.path.startswith("python/bindings/")
            foreign = _TORCH_OR_PYTHON.search(line)
            if foreign and not (binding and foreign.group(1) in ("Python.h", "pybind11/", "nanobind/")):
                yield Violation("foreign-header", source.path, line.strip())
            if source.path.startswith("cpp/") and _CUDA_HEADER.search(line):
                yield Violation("foreign-header", source.path, line.strip())


def check_cuda_wrappers(sources: Iterable[Source]) -> Iterator[Violation]:
    """What is not C++ stands behind the wrappers of cuda/common, so that the emulator runs every kernel."""
    for source in sources:
        if not source.path.startswith("cuda/") or source.path.startswith("cuda/common/"):
            continue
        for number, line in enumerate(strip_cpp(source.text).splitlines(), 1):
            if _NOT_CPP.search(line):
                yield Violation("cuda-wrapper", source.path, f"line {number}")


def check_throw(sources: Iterable[Source]) -> Iterator[Violation]:
    """cpp/ returns Status. It may catch what the standard library throws, so that nothing crosses.

    One file throws: std::bad_alloc with a name (ADR 21).
    """
    for source in sources:
        if source.path == "cpp/base/out_of_memory.cc":
            continue
        if source.path.startswith("cpp/") and source.suffix in CPP_SUFFIXES:
            for number, line in enumerate(strip_cpp(source.text).splitlines(), 1):
                if re.search(r"\bthrow\b", line):
                    yield Violation("throw", source.path, f"line {number}")


def check_pickle(sources: Iterable[Source]) -> Iterator[Violation]:
    """Unpickling runs the file's code; torch.load is the same door."""
    for source in sources:
        if source.suffix != ".py" or source.path.startswith("tests/"):
            continue
        for node in ast.walk(ast.parse(source.text)):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
                names = ["pickle"]
            for name in names:
                if name.split(".")[0] in _PICKLES:
                    yield Violation("pickle", source.path, f"line {getattr(node, 'lineno', 0)}")


def check_environment(sources: Iterable[Source]) -> Iterator[Violation]:
    """Environment variables are read in octavo/env.py alone and shown by collect-env; the core reads none."""
    for source in sources:
        if source.path.startswith("python/octavo/") and source.suffix == ".py":
            pattern = r"\bos\.(?:environ|getenv)\b"
            text = source.text
        elif source.path.startswith(("cpp/", "cuda/", "python/bindings/")) and source.suffix in CPP_SUFFIXES:
            pattern = r"\b(?:secure_)?getenv\s*\("
            text = strip_cpp(source.text)
        else:
            continue
        if source.path not in _READ_THE_ENVIRONMENT and re.search(pattern, text):
            yield Violation("environment", source.path, "reads the environment")


def check_machine_paths(sources: Iterable[Source]) -> Iterator[Violation]:
    for source in sources:
        for number, line in enumerate(source.lines, 1):
            found = _MACHINE_PATH.search(line)
            if found:
                yield Violation("machine-path", source.path, f"line {number}: {found.group()}")


def check_unfinished(sources: Iterable[Source]) -> Iterator[Violation]:
    for source in sources:
        if source.suffix in CODE_SUFFIXES:
            for number, line in enumerate(source.lines, 1):
                if _UNFINISHED.search(line):
                    yield Violation("unfinished", source.path, f"line {number}")
