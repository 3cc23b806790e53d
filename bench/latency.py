"""Where the time of single steps goes on a GPU: first tokens, steps by batch, and how long the device waits.

    python bench/latency.py --model Qwen3-0.6B
    python bench/latency.py --model Llama-3.1-8B --output latency.json
    python bench/latency.py --model Qwen3-0.6B --busy-threads 2
    python bench/latency.py --batches 1,128 --kernels

A step's idle time comes from a trace of the device: the pauses between one step's last kernel and the next
one's first, which is what the host costs, and those between the kernels of one step. With busy threads every
batch is timed once more, beside as many threads of Python that compute: what a server's other work does.
--kernels prints the trace kernel by kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from device_trace import as_json, pauses, spans_of, table, whole_steps
from model_folders import CONFIGS, model_folder
from torch.profiler import ProfilerActivity, profile

from octavo import LLM, SamplingParams
from octavo.version import __version__

BATCHES = (1, 8, 64, 256)
PROMPTS = (128, 2048, 8192)
CONTEXT = 512  # tokens of each prompt of a batch
STEPS = 40  # of a trace
TIMED_STEPS = 200
MOST_AHEAD = 32  # outputs that may wait for the caller
MARGIN = 8  # steps at either end of a trace


def main() -> int:
    """Measures, prints two tables and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="Qwen3-0.6B", help=f"a folder, or one of {', '.join(CONFIGS)}")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument(
        "--busy-threads",
        type=int,
        default=0,
        metavar="N",
        help="time steps beside N threads that hold the GIL",
    )
    parser.add_argument("--batches", type=sizes, default=BATCHES, help="rows of decode steps, a comma list")
    parser.add_argument("--kernels", action="store_true", help="print the device's time by kernel")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        folder = model_folder(args.model, Path(parent))
        load_format = "dummy" if args.model in CONFIGS else "auto"
        llm = LLM(str(folder), device="cuda", load_format=load_format, max_model_len=max(PROMPTS) + 1024)
    first = [first_token(llm, length) for length in PROMPTS]
    steps = [decode(llm, batch, args.busy_threads, kernels=args.kernels) for batch in args.batches]
    result = {
        "benchmark": "latency",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "bench/latency.py", *sys.argv[1:]]),
        "octavo": __version__,
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(),
        "model": Path(args.model).name,
        "first_token": first,
        "decode": steps,
    }
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n")
    return 0


def prompt_of(length: int, seed: int) -> list[int]:
    """Ordinary tokens."""
    tokens: list[int] = np.random.default_rng(seed).integers(1000, 100_000, length).tolist()
    return tokens


def first_token(llm: LLM, length: int) -> dict[str, float]:
    """Milliseconds from submitting a prompt that is not cached to its first token: median of ten."""
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    times = []
    for seed in range(12):
        prompt = prompt_of(length, 1000 * length + seed)
        start = time.perf_counter()
        llm.generate([prompt], params, use_tqdm=False)
        times.append(1e3 * (time.perf_counter() - start))
    median = statistics.median(times[2:])
    print(f"prompt of {length:6}: first token after {median:8.2f} ms")
    return {"prompt_tokens": length, "ms": round(median, 3)}


def sizes(text: str) -> tuple[int, ...]:
    """Numbers of rows of a comma list."""
    return tuple(int(part) for part in text.split(","))


def decode(llm: LLM, batch: int, busy_threads: int, *, kernels: bool = False) -> dict[str, Any]:
    """Wall time of a decode step, alone and beside busy threads, and the device's pauses in it.

    `kernels`: print what each kernel takes, too.
    """
    engine = llm.llm_engine
    for i in range(batch):
        params = SamplingParams(temperature=0, max_tokens=900, ignore_eos=True)
        engine.add_request(f"{batch}-{i}", prompt_of(CONTEXT, i), params)
    for _ in range(50):  # past every prompt's end, and past the capture
        engine.step()
    result: dict[str, Any] = {"batch": batch, "step_ms": round(step_time(llm), 4)}
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(MOST_AHEAD + STEPS):
            engine.step()
        torch.cuda.synchronize()
    spans, steps = whole_steps(spans_of(trace), MARGIN)
    between, within = (us / steps for us in pauses(spans))
    result |= {"idle_between_us": round(between, 2), "idle_within_us": round(within, 2)}
    if busy_threads:
        with spinning(busy_threads):
            result["busy_step_ms"] = round(step_time(llm), 4)
    engine.abort_request(list(engine.unfinished_request_ids()))
    while engine.has_unfinished_requests():
        engine.step()
    busy = f", beside {busy_threads} busy threads {result['busy_step_ms']:8.3f} ms" if busy_threads else ""
    print(
        f"batch {batch:4}: step {result['step_ms']:8.3f} ms, idle between {between:5.1f} us, "
        f"within {within:5.1f} us{busy}"
    )
    if kernels:
        print(table(spans, steps))
        result["kernels"] = as_json(spans, steps)
    return result


def step_time(llm: LLM) -> float:
    """Milliseconds a step, over enough of them that a few waiting outputs do not count."""
    engine = llm.llm_engine
    for _ in range(MOST_AHEAD):
        engine.step()
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        engine.step()
    return 1e3 * (time.perf_counter() - start) / TIMED_STEPS


@contextlib.contextmanager
def spinning(count: int) -> Iterator[None]:
    """Threads that compute in Python."""
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=spin) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    raise SystemExit(main())
