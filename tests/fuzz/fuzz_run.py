"""Runs fuzz targets for a while each, some at a time, from the corpus that is committed.

    python tests/fuzz/fuzz_run.py --seconds 60 ops engine config

With a seed a run begins alike every time: what passes for some seconds passes for fewer. CI has one, so that
it judges a change by what changed; without, runs look for what is new.

What a run finds stays in build/fuzz/found/<target>, a failing input in build/fuzz/failed. Exits with 1 when a
target failed, and prints its input and the end of its log.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
CORPUS = Path(__file__).resolve().parent / "corpus"
CPP = ("ops", "engine", "life", "trace")
PYTHON = ("safetensors", "config", "tokenizer", "chat_template", "traffic", "kv_events", "inputs")
# Bytes of an input: a whole program of the target; short ones run more often.
MAX_INPUT = {"ops": 500, "engine": 500, "life": 300}
MAX_OTHER_INPUT = 1500
MAX_SECONDS = 30  # for one input, on a busy machine
MAX_MIB = 3072
SHOWN = 60  # lines of a log that failed
_SUMMARY = re.compile(r"^#\d+\s+DONE .*|^stat::(?:number_of_executed|average_exec|peak_rss).*", re.M)


def command(target: str, seconds: int, seed: int) -> list[str]:
    """The program of a target, with its corpora and limits. Seed 0 is another one every time."""
    found, failed = BUILD / "found" / target, BUILD / "failed"
    for folder in (found, failed):
        folder.mkdir(parents=True, exist_ok=True)
    if target in CPP:
        program = [str(BUILD / "tests" / "fuzz" / f"fuzz_{target}")]
    else:
        program = [sys.executable, str(Path(__file__).with_name("fuzz_main.py")), target]
    limits = {
        "max_total_time": seconds,
        "max_len": MAX_INPUT.get(target, MAX_OTHER_INPUT),
        "len_control": 0,
        "seed": seed,
        "timeout": MAX_SECONDS,
        "rss_limit_mb": MAX_MIB,
        "print_final_stats": 1,
        "artifact_prefix": f"{failed}/{target}-",
    }
    return [*program, str(found), str(CORPUS / target), *(f"-{key}={value}" for key, value in limits.items())]


def run(target: str, seconds: int, seed: int) -> bool:
    """Fuzzes one target; whether nothing was found."""
    program = command(target, seconds, seed)
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)} if seed else None
    finished = subprocess.run(
        program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    log = finished.stdout.decode("utf-8", "replace")
    verdict = "FAILED" if finished.returncode else "passed"
    print("\n  ".join([f"{target}: {verdict}", *_SUMMARY.findall(log)]))
    if finished.returncode:
        print("\n".join(log.splitlines()[-SHOWN:]))
        written = re.search(r"Test unit written to (\S+)", log)
        if written:
            data = Path(written[1]).read_bytes()
            print(f"{target}: the input, {len(data)} bytes in {written[1]}: {data!r}")
            print(f"again: {' '.join(program[: 1 if target in CPP else 3])} {written[1]}")
    sys.stdout.flush()
    return finished.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs fuzz targets for a while each.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="of every choice; 0: another one every time")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time")
    parser.add_argument("targets", nargs="*", default=[*CPP, *PYTHON], help="all of them unless named")
    options = parser.parse_args()
    if unknown := set(options.targets) - {*CPP, *PYTHON}:
        parser.error(f"no target {unknown.pop()!r}; there are {', '.join((*CPP, *PYTHON))}")
    with ThreadPoolExecutor(options.jobs) as pool:
        passed = list(pool.map(lambda target: run(target, options.seconds, options.seed), options.targets))
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
