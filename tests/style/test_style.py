"""The repository keeps the rules of style_rules.py and style_layers.py; each is shown to be able to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
import style_layers as layers
import style_rules as rules
from style_rules import Violation
from style_source import ROOT, Source, functions, repository_sources

Rule = Callable[[Iterable[Source]], Iterator[Violation]]

RULES: tuple[Rule, ...] = (
    rules.check_file_length,
    rules.check_function_length,
    rules.check_foreign_headers,
    rules.check_cuda_wrappers,
    rules.check_throw,
    rules.check_pickle,
    rules.check_environment,
    rules.check_machine_paths,
    rules.check_unfinished,
    layers.check_cpp_layers,
    layers.check_python_layers,
    layers.check_light_imports,
)


def read_ratchet() -> dict[tuple[str, str], int]:
    """Allowed size of each (rule, subject)."""
    allowed = {}
    for line in (ROOT / "tests/style/ratchet.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            rule, subject, size, reason = line.split(maxsplit=3)
            assert rule in ("file-length", "function-length") and reason
            allowed[rule, subject] = int(size)
    return allowed


def apply_ratchet(found: Iterable[Violation], allowed: dict[tuple[str, str], int]) -> list[str]:
    """What is left to complain about, exceptions that could shrink included."""
    left = dict(allowed)
    complaints = []
    for violation in found:
        size = left.pop((violation.rule, violation.subject), None)
        if size is None or violation.size > size:
            complaints.append(f"{violation.rule}: {violation.subject}: {violation.detail}")
        elif violation.size < size:
            complaints.append(f"ratchet: {violation.subject} has {violation.size} lines now: lower its entry")
    complaints += [f"ratchet: {subject} keeps the rule now: remove its entry" for _, subject in left]
    return complaints


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return repository_sources()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__.removeprefix("check_"))
def test_the_repository_keeps(rule: Rule, sources: list[Source]) -> None:
    assert sources
    found = list(rule(sources))
    allowed = {
        key: size for key, size in read_ratchet().items() if key[0] == rule.__name__[6:].replace("_", "-")
    }
    complaints = apply_ratchet(found, allowed)
    assert not complaints, "\n".join(complaints)


LONG_PYTHON = "def long() -> None:\n" + "    x = 1\n" * 70
LONG_CPP = (
    'namespace a {\n\nint Long(int x) {\n  // }\n  const char* s = "}";\n' + "  x += '}';\n" * 70 + "}\n}\n"
)
HOME = "/" + "home/someone/file"

BROKEN: tuple[tuple[Rule, str, str], ...] = (
    (rules.check_file_length, "cpp/kv/a.cc", "\n" * 601),
    (rules.check_function_length, "python/octavo/a.py", LONG_PYTHON),
    (rules.check_function_length, "cpp/kv/a.cc", LONG_CPP),
    (
        rules.check_function_length,
        "tests/cpp/a.cc",
        'TEST_CASE("a long (test)") {\n' + "  f();\n" * 70 + "}\n",
    ),
    (rules.check_foreign_headers, "cpp/kv/a.h", "#include <torch/extension.h>\n"),
    (rules.check_foreign_headers, "cpp/kv/a.h", "#include <Python.h>\n"),
    (rules.check_foreign_headers, "cpp/base/a.h", "#include <cuda_runtime.h>\n"),
    (rules.check_foreign_headers, "cuda/cache/a.cu", "#include <ATen/ATen.h>\n"),
    (rules.check_foreign_headers, "cuda/cache/a.cu", "#include <pybind11/pybind11.h>\n"),
    (rules.check_foreign_headers, "python/bindings/core.cc", "#include <torch/torch.h>\n"),
    (rules.check_cuda_wrappers, "cuda/rows/a.cuh", 'asm volatile("bar.sync 0;");\n'),
    (rules.check_cuda_wrappers, "cuda/rows/a.cu", "Kernel<<<1, 32>>>(p);\n"),
    (rules.check_cuda_wrappers, "cuda/rows/a.cu", "extern __shared__ char shared[];\n"),
    (rules.check_throw, "cpp/kv/a.cc", "void F() { throw 1; }\n"),
    (rules.check_pickle, "python/octavo/a.py", "import pickle\n"),
    (rules.check_pickle, "python/octavo/a.py", "from pickle import loads\n"),
    (rules.check_pickle, "python/octavo/a.py", "import torch\nx = torch.load('a')\n"),
    (rules.check_environment, "python/octavo/a.py", "import os\nx = os.environ['A']\n"),
    (rules.check_environment, "cpp/cpu/a.cc", 'const char* a = std::getenv("A");\n'),
    (rules.check_machine_paths, "docs/a.md", f"see {HOME} for it\n"),
    (rules.check_unfinished, "cpp/kv/a.cc", "// TO" + "DO: later\n"),
    (layers.check_cpp_layers, "cpp/base/a.cc", '#include "kv/block_pool.h"\n'),
    (layers.check_cpp_layers, "cpp/kv/a.cc", '#include "encoder/budget.h"\n'),
    (layers.check_cpp_layers, "cpp/kv/a.cc", '#include "octavo/engine.h"\n'),
    (layers.check_cpp_layers, "cpp/batch/a.cc", '#include "sched/request.h"\n'),
    (layers.check_cpp_layers, "cpp/cpu/a.cc", '#include "kv/block_pool.h"\n'),
    (layers.check_cpp_layers, "cuda/cache/a.cu", '#include "batch/arena.h"\n'),
    (layers.check_cpp_layers, "cpp/kv/a.cc", '#include "block_pool.h"\n'),
    (layers.check_cpp_layers, "cpp/misc/a.cc", "int x;\n"),
    (layers.check_cpp_layers, "cpp/include/octavo/step.h", '#include "octavo/engine.h"\n'),
    (layers.check_python_layers, "python/octavo/layers/a.py", "from octavo.models import llama\n"),
    (layers.check_python_layers, "python/octavo/models/a.py", "from octavo.runner.batch import Batch\n"),
    (layers.check_python_layers, "python/octavo/runner/a.py", "def f():\n    import octavo.engine.llm\n"),
    (layers.check_python_layers, "python/octavo/models/a.py", "from ..engine import llm\n"),
    (layers.check_python_layers, "python/octavo/misc.py", "x = 1\n"),
    (layers.check_light_imports, "python/octavo/config.py", "import torch\n"),
    (
        layers.check_light_imports,
        "python/octavo/cli/main.py",
        "try:\n    from torch import nn\nexcept ImportError:\n    pass\n",
    ),
)


@pytest.mark.parametrize(("rule", "path", "text"), BROKEN)
def test_a_rule_sees_what_breaks_it(rule: Rule, path: str, text: str) -> None:
    assert list(rule([Source(path, text)]))


KEPT: tuple[tuple[Rule, str, str], ...] = (
    (
        rules.check_function_length,
        "cpp/kv/a.cc",
        "struct A {\n" + "  int x;\n" * 80 + "};\nint F() { return 1; }\n",
    ),
    (rules.check_function_length, "cpp/kv/a.cc", "constexpr int kA[] = {\n" + "  1,\n" * 80 + "};\n"),
    (rules.check_foreign_headers, "python/bindings/core.cc", "#include <pybind11/pybind11.h>\n"),
    (rules.check_cuda_wrappers, "cuda/common/a.cuh", 'asm volatile("bar.sync 0;");\n'),
    (rules.check_cuda_wrappers, "cuda/rows/a.cuh", "// mma.sync without asm\n"),
    (rules.check_throw, "cpp/kv/a.cc", "// we never throw\n"),
    (layers.check_cpp_layers, "cpp/sched/a.cc", '#include "kv/block_pool.h"\n#include "octavo/step.h"\n'),
    (layers.check_cpp_layers, "cpp/base/clock.h", '#include "octavo/executor.h"\n'),
    (
        layers.check_python_layers,
        "python/octavo/engine/llm.py",
        "from octavo import ops\nimport octavo.runner.runner\n",
    ),
    (layers.check_light_imports, "python/octavo/config.py", "def f():\n    import torch\n"),
    (layers.check_light_imports, "python/octavo/plan.py", "if TYPE_CHECKING:\n    import torch\n"),
)


@pytest.mark.parametrize(("rule", "path", "text"), KEPT)
def test_a_rule_lets_pass_what_keeps_it(rule: Rule, path: str, text: str) -> None:
    assert not list(rule([Source(path, text)]))


def test_a_circle_between_neighbours_is_seen() -> None:
    circle = [
        Source("python/octavo/config.py", "import octavo.plan\n"),
        Source("python/octavo/plan.py", "from octavo.config import Config\n"),
    ]
    assert any("circle" in violation.detail for violation in layers.check_python_layers(circle))


def test_functions_are_measured_from_their_head_to_their_last_brace() -> None:
    measured = list(functions(Source("a.cc", "class A {\n  A() : x_(1) {\n    f();\n  }\n  int x_;\n};\n")))
    assert [(function.name, function.lines) for function in measured] == [("A", 3)]


def test_the_ratchet_may_only_shrink() -> None:
    found = [Violation("file-length", "a.py", "650 lines", 650)]
    assert not apply_ratchet(found, {("file-length", "a.py"): 650})
    assert "lower" in apply_ratchet(found, {("file-length", "a.py"): 700})[0]
    assert "650 lines" in apply_ratchet(found, {("file-length", "a.py"): 640})[0]
    assert "remove" in apply_ratchet([], {("file-length", "a.py"): 640})[0]
