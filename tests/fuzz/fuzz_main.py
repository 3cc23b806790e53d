"""python tests/fuzz/fuzz_main.py TARGET [corpus folders, files and options of libFuzzer]"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["octavo", "jinja2", "json"]):
    import fuzz_targets


def main() -> None:
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in fuzz_targets.TARGETS:
        sys.exit(f"usage: fuzz_main.py {'|'.join(fuzz_targets.TARGETS)} [corpus...] [-options]")

    def one(data: bytes) -> None:
        fuzz_targets.run(name, data)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
