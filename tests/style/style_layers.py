"""Who may use whom, in C++ and in Python. An arrow never runs back up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from style_rules import Violation
from style_source import CPP_SUFFIXES, Source

# base <- kv, encoder <- transfer, batch <- sched <- engine <- sim, tools, bindings; the ops see base only.
_CPP_MAY_USE: dict[str, frozenset[str]] = {
    "base": frozenset(),
    "kv": frozenset({"base"}),
    "encoder": frozenset({"base"}),
    "transfer": frozenset({"base", "kv", "encoder"}),
    "batch": frozenset({"base", "kv", "encoder"}),
    "sched": frozenset({"base", "kv", "encoder", "transfer", "batch"}),
    "engine": frozenset({"base", "kv", "encoder", "transfer", "batch", "sched"}),
    "cpu": frozenset({"base"}),
    "cuda": frozenset({"base"}),
}
_CPP_TOP = frozenset(_CPP_MAY_USE)  # sim, tools and bindings: everything below them
_CPP_MAY_USE["sim"] = _CPP_TOP - {"cuda"}
_CPP_MAY_USE["tools"] = _CPP_TOP | {"sim"}
_CPP_MAY_USE["bindings"] = _CPP_TOP | {"sim"}

# The public headers are base's, but for the engine itself. executor.h holds interfaces that lower layers own.
_ENGINE_HEADERS = frozenset({"octavo/engine.h"})

_QUOTED = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)

# A module may use what has a lower rank, and its neighbours where the rank says so; a circle never.
_PYTHON_RANKS: tuple[tuple[frozenset[str], bool], ...] = tuple(
    (frozenset(members.split()), neighbours)
    for members, neighbours in (
        ("errors env version", True),
        ("core _core ops _ops", True),
        (
            "config footprint hf hf_config kv_events machine"
            " outputs media plan prompts sampling_params speculation text weights",
            True,
        ),
        ("simulate", False),
        ("layers", False),
        ("models", False),
        ("runner", False),
        ("engine", False),
        ("cli __main__", True),
    )
)
# Importing these must stay cheap: `import octavo` and `octavo --help` go through them.
_LIGHT = frozenset(
    "__init__ __main__ cli config env errors footprint hf hf_config machine media outputs plan prompts"
    " sampling_params speculation text version".split()
)
_HEAVY = frozenset({"torch", "transformers", "pandas", "scipy"})


def cpp_folder(path: str) -> str | None:
    """The layer that a C++ file belongs to; None where no rule applies (tests, examples)."""
    parts = path.split("/")
    if path.startswith("cpp/include/octavo/"):
        return "engine" if f"octavo/{parts[-1]}" in _ENGINE_HEADERS else "base"
    if parts[0] == "cpp" and len(parts) > 2:
        return parts[1]
    if parts[0] == "cuda":
        return "cuda"
    if path.startswith("python/bindings/"):
        return "bindings"
    return None


def check_cpp_layers(sources: Iterable[Source]) -> Iterator[Violation]:
    listed = list(sources)
    paths = {source.path for source in listed}
    for source in listed:
        folder = cpp_folder(source.path)
        if source.suffix not in CPP_SUFFIXES or folder is None:
            continue
        if folder not in _CPP_MAY_USE:
            yield Violation("cpp-layer", source.path, f"cpp/{folder}/ has no place in the layers")
            continue
        for included in _QUOTED.findall(source.text):
            if folder in ("cuda", "bindings") and f"{_home(folder)}/{included}" in paths:
                continue
            used = cpp_folder(_included_path(included))
            if used is None or used not in _CPP_MAY_USE:
                yield Violation("cpp-layer", source.path, f'"{included}" does not name a folder of cpp/')
            elif used != folder and used not in _CPP_MAY_USE[folder]:
                yield Violation("cpp-layer", source.path, f'{folder} may not use "{included}" of {used}')


def _home(folder: str) -> str:
    return {"cuda": "cuda", "bindings": "python/bindings"}[folder]


def _included_path(included: str) -> str:
    return f"cpp/include/{included}" if included.startswith("octavo/") else f"cpp/{included}"


def python_component(path: str) -> str | None:
    """`config` for python/octavo/config.py, `layers` for python/octavo/layers/norm.py, None elsewhere."""
    if not path.startswith("python/octavo/") or not path.endswith(".py"):
        return None
    return path.removeprefix("python/octavo/").removesuffix(".py").split("/")[0]


def _imports(source: Source) -> Iterator[tuple[int, str]]:
    """Line and component of each import of octavo, wherever it stands: a late import is an arrow too."""
    package = source.path.removeprefix("python/").removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(source.text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "octavo" and len(parts) > 1:
                yield getattr(node, "lineno", 0), parts[1]


def _rank(component: str) -> int | None:
    for rank, (members, _) in enumerate(_PYTHON_RANKS):
        if component in members:
            return rank
    return None


def check_python_layers(sources: Iterable[Source]) -> Iterator[Violation]:
    arrows: dict[str, set[str]] = {}
    for source in sources:
        component = python_component(source.path)
        if component is None or component == "__init__":  # the lazy front door names everything
            continue
        rank = _rank(component)
        if rank is None:
            yield Violation("python-layer", source.path, f"octavo.{component} has no place in the layers")
            continue
        for line, used in _imports(source):
            used_rank = _rank(used)
            if used == component or used_rank is None:  # itself, or a name that octavo/__init__.py gives
                continue
            arrows.setdefault(component, set()).add(used)
            if used_rank > rank or (used_rank == rank and not _PYTHON_RANKS[rank][1]):
                yield Violation("python-layer", source.path, f"line {line}: {component} may not use {used}")
    for cycle in _cycles(arrows):
        yield Violation("python-layer", "python/octavo", "a circle: " + " -> ".join(cycle))


def _cycles(arrows: dict[str, set[str]]) -> Iterator[list[str]]:
    """One circle, if there is any: what is left after taking away, again and again, what uses nothing."""
    left = {name: set(used) for name, used in arrows.items()}
    while True:
        done = [name for name, used in left.items() if not used & left.keys()]
        if not done:
            break
        for name in done:
            del left[name]
    if left:
        trail = [min(left)]
        while trail.count(trail[-1]) == 1:
            trail.append(min(left[trail[-1]] & left.keys()))
        yield trail[trail.index(trail[-1]) :]


def check_light_imports(sources: Iterable[Source]) -> Iterator[Violation]:
    """No torch at import time in what `import octavo` and `octavo --help` load."""
    for source in sources:
        component = python_component(source.path)
        if component not in _LIGHT:
            continue
        for node in _executed_at_import(ast.parse(source.text).body):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            for name in names:
                if name.split(".")[0] in _HEAVY:
                    yield Violation("light-import", source.path, f"line {node.lineno}: {name}")


def _executed_at_import(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                yield from _executed_at_import(node.body)
            yield from _executed_at_import(node.orelse)
        elif isinstance(node, ast.Try):
            yield from _executed_at_import(node.body)
            for handler in node.handlers:
                yield from _executed_at_import(handler.body)
        elif isinstance(node, ast.ClassDef | ast.With):
            yield from _executed_at_import(node.body)
