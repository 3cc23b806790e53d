"""The simulator beside the engine: is what `octavo simulate` predicts of this machine what happens on it?

    python bench/simulate_cpu.py                   # writes bench/results/simulate_cpu.json
    python bench/simulate_cpu.py --clock cpu       # processor time of one thread, for a busy machine

Measures steps of a small Llama with random weights, simulates traffic with them, then serves the same traffic
for real, and compares. Exit code 1 if throughput differs by more than 10 % or the median time to the first
token by more than 15 %. Each repetition measures anew, and the medians of the ratios count.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from octavo import LLM, SamplingParams, core
from octavo.cli.bench_steps import CLOCKS, Grid, measure
from octavo.cli.collect_env import collect
from octavo.cli.workload import lognormal_lengths, random_tokens
from octavo.engine.llm_engine import LLMEngine
from octavo.simulate import report, traffic

RESULTS = Path(__file__).resolve().parent / "results"
THROUGHPUT_LIMIT, TTFT_LIMIT = 0.10, 0.15
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def load(folder: Path, threads: int, model: dict[str, Any] = MODEL) -> LLM:
    """The model with random weights, in an engine of a few rows."""
    (folder / "config.json").write_text(json.dumps(model))
    return LLM(
        str(folder),
        load_format="dummy",
        num_threads=threads,
        skip_tokenizer_init=True,
        max_num_seqs=16,
        max_num_batched_tokens=256,
        kv_cache_memory_bytes="128MiB",
    )


def make_traffic(number: int, rate: float, seed: int, *, input_len: int = 120, output_len: int = 40) -> Any:
    """Chat-like requests that arrive at random, `rate` a second."""
    rng = np.random.default_rng(seed)
    shape = traffic.Shape(
        num_requests=number,
        input_lens=lognormal_lengths(rng, number, input_len, 0.8, high=512),
        output_lens=lognormal_lengths(rng, number, output_len, 0.6, high=160),
    )
    requests = traffic.make_requests(shape, rng)
    traffic.open_loop(requests, rate, rng)
    return requests


def serve(engine: LLMEngine, requests: Any, clock: Callable[[], float]) -> dict[str, Any]:
    """The same requests through the engine itself; times of an idle engine are skipped, not waited for."""
    rng = np.random.default_rng(1)
    vocab_size = engine.plan.spec.vocab_size
    prompts = [random_tokens(rng, int(request["input_len"]), vocab_size) for request in requests]
    records = np.zeros(len(requests), [("arrival", "f8"), ("first_token", "f8"), ("end", "f8")])
    records["arrival"], records["first_token"] = requests["arrival"], -1
    engine.core.reset_prefix_cache()
    start, skipped, arrived = clock(), 0.0, 0
    while arrived < len(requests) or engine.has_unfinished_requests():
        now = clock() - start + skipped
        if not engine.has_unfinished_requests() and requests["arrival"][arrived] > now:
            skipped += requests["arrival"][arrived] - now
            now = requests["arrival"][arrived]
        while arrived < len(requests) and requests["arrival"][arrived] <= now:
            length = int(requests["output_len"][arrived])
            params = SamplingParams(max_tokens=length, ignore_eos=True, detokenize=False)
            engine.add_request(str(arrived), {"prompt_token_ids": prompts[arrived]}, params)
            arrived += 1
        outputs = engine.step()
        now = clock() - start + skipped
        for output in outputs:
            record = records[int(output.request_id)]
            if record["first_token"] < 0:
                record["first_token"] = now
            if output.finished:
                record["end"] = now
    tokens = int(requests["output_len"].sum())
    return {
        "output_tokens_per_second": tokens / float(records["end"].max()),
        "ttft_p50": float(np.median(records["first_token"] - records["arrival"])),
    }


def compare(llm: LLM, requests: Any, grid: Grid, clock: str) -> dict[str, Any]:
    """One measured cost model, one prediction, one real run."""
    engine = llm.llm_engine
    table = measure(engine, grid, clock=clock)
    model = core.CostModel.table(**{name: table[name] for name in ("rows", "extra", "context", "seconds")})
    config = core.EngineConfig(**engine.plan.engine_options())
    result = core.serve(config, model, requests, submit_seconds=table["submit_seconds"])
    summary = report.summarize(result, report.Targets())
    real = serve(engine, requests, CLOCKS[clock])
    predicted = {
        "output_tokens_per_second": summary["output_tokens_per_second"],
        "ttft_p50": summary["ttft"]["p50"],
    }
    ratios = {name: predicted[name] / real[name] for name in real}
    return {"predicted": predicted, "real": real, "ratios": ratios, "table": table}


def median_ratios(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Predicted over real, the median of the repetitions."""
    return {name: statistics.median(run["ratios"][name] for run in runs) for name in runs[0]["ratios"]}


def within(ratios: dict[str, float]) -> bool:
    """Whether the prediction is as near as it must be."""
    return (
        abs(ratios["output_tokens_per_second"] - 1) <= THROUGHPUT_LIMIT
        and abs(ratios["ttft_p50"] - 1) <= TTFT_LIMIT
    )


def main() -> int:
    """Compares, prints and writes the result."""
    args = parse_arguments()
    load_before = os.getloadavg()[0]
    scenarios = []
    with tempfile.TemporaryDirectory() as folder:
        llm = load(Path(folder), args.threads)
        grid = Grid.for_plan(llm.llm_engine.plan, context=(0, 128, 512), repeats=args.steps)
        for name, rate in (("light load", args.rate), ("overload", 100 * args.rate)):
            requests = make_traffic(args.num_requests, rate, seed=0)
            runs = [compare(llm, requests, grid, args.clock) for _ in range(args.repeats)]
            ratios = median_ratios(runs)
            scenarios.append(
                {"name": name, "rate": rate, "ratios": ratios, "within": within(ratios)}
                | {"runs": [{k: v for k, v in run.items() if k != "table"} for run in runs]}
            )
            print(
                f"{name:12} predicted / real: throughput {ratios['output_tokens_per_second']:.3f}, "
                f"TTFT p50 {ratios['ttft_p50']:.3f}; within {THROUGHPUT_LIMIT:.0%} and {TTFT_LIMIT:.0%}",
                flush=True,
            )
    if args.output:
        environment = collect()
        result = {
            "benchmark": "simulate_cpu",
            "date": datetime.date.today().isoformat(),
            "command": " ".join(["python", "bench/simulate_cpu.py", *sys.argv[1:]]),
            "versions": {name: environment["versions"][name] for name in ("octavo", "python", "torch")},
            "cpu": environment["cpu"],
            "load_average_before": load_before,
            "threads": args.threads,
            "clock": args.clock,
            "num_requests": args.num_requests,
            "scenarios": scenarios,
        }
        Path(args.output).write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(scenario["within"] for scenario in scenarios) else 1


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="repetitions of everything")
    parser.add_argument("--steps", type=int, default=15, help="repetitions of each step measured")
    parser.add_argument("--num-requests", type=int, default=120)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second of the light load")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--output", default=str(RESULTS / "simulate_cpu.json"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
