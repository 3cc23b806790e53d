"""`octavo bench throughput`, `latency` and `steps`: the engine alone, on synthetic prompts."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import config
from octavo.cli import bench_steps
from octavo.cli.console import note, print_table, write_json
from octavo.cli.engine import add_engine_flags, add_model, make_llm, raise_failed
from octavo.cli.errors import CommandError, UsageError
from octavo.cli.options import parse_count, parse_counts, typed
from octavo.cli.workload import DATASETS, Workload, make_workload
from octavo.version import __version__
from octavo.weights.checkpoint import has_weights

if TYPE_CHECKING:
    from octavo import LLM, SamplingParams
    from octavo.prompts import PromptType

DESCRIPTION = """\
Measure the engine on synthetic prompts from a fixed seed. A folder with config.json alone is enough: the
weights are then random, which changes no timing.

  octavo bench throughput ./model --dataset sharegpt-like --input-len 220 --output-len 200
  octavo bench latency ./model --input-len 32 --output-len 128 --batch-size 8
  octavo bench steps ./model --cost-model here.json      # for octavo simulate"""

PERCENTILES = (10, 25, 50, 75, 90, 99)
WARMUP_TOKENS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmarks, each a command of its own."""
    children = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", prog=parser.prog, required=True)
    throughput = children.add_parser("throughput", help="all requests at once: tokens and requests a second")
    add_common(throughput, input_len=512, output_len=128)
    throughput.add_argument(
        "--num-prompts", type=count, metavar="N", default=100, help="requests (default: 100)"
    )
    throughput.add_argument(
        "--dataset", choices=DATASETS, default="random", help="one length, or lognormal lengths around it"
    )
    throughput.add_argument(
        "--prefix-len",
        type=count_or_zero,
        metavar="N",
        default=0,
        help="tokens all prompts share (default: 0)",
    )
    throughput.set_defaults(measure=run_throughput)
    latency = children.add_parser(
        "latency", help="one batch from start to end, repeated: mean and percentiles"
    )
    add_common(latency, input_len=32, output_len=128)
    latency.add_argument(
        "--batch-size", type=count, metavar="N", default=8, help="requests of a batch (default: 8)"
    )
    latency.add_argument(
        "--num-iters", type=count, metavar="N", default=30, help="measured runs (default: 30)"
    )
    latency.add_argument(
        "--num-iters-warmup",
        type=count_or_zero,
        metavar="N",
        default=10,
        help="runs before these (default: 10)",
    )
    latency.set_defaults(measure=run_latency)
    steps = children.add_parser("steps", help="how long steps take: a cost model for octavo simulate")
    add_model(steps)
    bench_steps.add_arguments(steps, typed(parse_counts, "a list of counts"))
    steps.set_defaults(measure=run_steps, output_json=None)
    for child in (throughput, latency, steps):
        child.description = DESCRIPTION
        child.set_defaults(owner=child)
        add_engine_flags(child)


def add_common(parser: argparse.ArgumentParser, *, input_len: int, output_len: int) -> None:
    """The arguments of both benchmarks."""
    add_model(parser)
    parser.add_argument(
        "--input-len",
        type=count,
        metavar="N",
        default=input_len,
        help=f"prompt tokens (default: {input_len})",
    )
    parser.add_argument(
        "--output-len",
        type=count,
        metavar="N",
        default=output_len,
        help=f"output tokens (default: {output_len})",
    )
    parser.add_argument(
        "--temperature", type=float, metavar="X", default=1.0, help="0: greedy (default: 1.0)"
    )
    parser.add_argument("--output-json", metavar="FILE", help="write the result to this file")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more; an error with traceback")


def run(args: argparse.Namespace) -> int:
    """Runs one benchmark, prints its table and writes its JSON."""
    result: dict[str, Any] = args.measure(args)
    if args.output_json:
        write_json(args.output_json, result)
    return 0


def run_throughput(args: argparse.Namespace) -> dict[str, Any]:
    """Submits every request at once and times until the last one ends."""
    llm = load(args)
    work = make_workload(
        args.dataset,
        args.num_prompts,
        args.input_len,
        args.output_len,
        prefix_len=args.prefix_len,
        vocab_size=llm.llm_engine.plan.spec.vocab_size,
        seed=getattr(args, "seed", 0),
    )
    check_context(llm, work)
    generate(llm, [work.prompts[0][:WARMUP_TOKENS]], [WARMUP_TOKENS], args)
    llm.reset_prefix_cache()
    elapsed, outputs = generate(llm, work.prompts, work.output_lens, args)
    cached = sum(output.num_cached_tokens or 0 for output in outputs)
    tokens = work.prompt_tokens + work.output_tokens
    result = describe(args, llm) | {
        "elapsed_time": elapsed,
        "num_requests": len(outputs),
        "prompt_tokens": work.prompt_tokens,
        "output_tokens": work.output_tokens,
        "cached_tokens": cached,
        "total_num_tokens": tokens,
        "requests_per_second": len(outputs) / elapsed,
        "tokens_per_second": tokens / elapsed,
        "output_tokens_per_second": work.output_tokens / elapsed,
    }
    rows = [
        ("time", f"{elapsed:.2f} s"),
        ("requests", f"{len(outputs):,}"),
        ("prompt tokens", f"{work.prompt_tokens:,}"),
        ("of these cached", f"{cached:,}"),
        ("output tokens", f"{work.output_tokens:,}"),
        ("requests/s", f"{result['requests_per_second']:.2f}"),
        ("tokens/s", f"{result['tokens_per_second']:,.1f}"),
        ("output tokens/s", f"{result['output_tokens_per_second']:,.1f}"),
    ]
    print_table(f"Throughput of {result['model']}", ("", "value"), rows)
    return result


def run_latency(args: argparse.Namespace) -> dict[str, Any]:
    """Times one batch again and again; prefix caching is off by default, as every repetition would hit."""
    import numpy as np

    llm = load(args, enable_prefix_caching=False)
    vocab_size, seed = llm.llm_engine.plan.spec.vocab_size, getattr(args, "seed", 0)
    work = make_workload(
        "random", args.batch_size, args.input_len, args.output_len, vocab_size=vocab_size, seed=seed
    )
    check_context(llm, work)
    latencies = []
    for index in range(args.num_iters_warmup + args.num_iters):
        elapsed, _ = generate(llm, work.prompts, work.output_lens, args, use_tqdm=False)
        if index >= args.num_iters_warmup:
            latencies.append(elapsed)
    values = np.percentile(latencies, PERCENTILES)
    mean = float(np.mean(latencies))
    result = describe(args, llm) | {
        "batch_size": args.batch_size,
        "avg_latency": mean,
        "latencies": latencies,
        "percentiles": {str(percent): float(value) for percent, value in zip(PERCENTILES, values)},
    }
    rows = [("mean", f"{mean:.4f}"), *((f"p{p}", f"{value:.4f}") for p, value in zip(PERCENTILES, values))]
    rows.append(("mean per output token", f"{mean / args.output_len:.5f}"))
    print_table(f"Latency of {result['model']}, batch {args.batch_size}", ("", "seconds"), rows)
    return result


def run_steps(args: argparse.Namespace) -> dict[str, Any]:
    """Times steps of many shapes and writes them as a cost model."""
    from octavo.simulate.cost import write_table

    if args.repeats < 1:
        raise UsageError(f"--repeats is {args.repeats}; use 1 or more")
    llm = load(args)
    engine = llm.llm_engine
    grid = bench_steps.Grid.for_plan(
        engine.plan, rows=args.rows, extra=args.extra, context=args.context, repeats=args.repeats
    )
    seed = getattr(args, "seed", 0)
    table = bench_steps.measure(engine, grid, temperature=args.temperature, clock=args.clock, seed=seed)
    try:
        write_table(args.cost_model, table)
    except OSError as error:
        raise CommandError(f"cannot write {args.cost_model}: {error.strerror}") from error
    rows = []
    milliseconds = iter(table["seconds"])
    for number in grid.rows:
        for extra in grid.extra:
            cells = [f"{1000 * next(milliseconds):.3f}" for _ in grid.context]
            rows.append([f"{number}", f"{extra}", *cells])
    header = ("rows", "extra tokens", *(f"after {context}" for context in grid.context))
    print_table(f"Milliseconds a step of {table['model']}", header, rows)
    return table


def load(args: argparse.Namespace, **defaults: Any) -> LLM:
    """The LLM to measure; random weights where the folder has none."""
    folder = config.model_folder(args.model)
    if not hasattr(args, "load_format") and not has_weights(folder):
        note("no *.safetensors in the folder: measuring with random weights (--load-format dummy)")
        defaults["load_format"] = "dummy"
    return make_llm(args, skip_tokenizer_init=True, **defaults)


def generate(
    llm: LLM,
    prompts: list[list[int]],
    output_lens: list[int],
    args: argparse.Namespace,
    *,
    use_tqdm: bool = True,
) -> tuple[float, list[Any]]:
    """Seconds and outputs of one job whose every request makes exactly its number of tokens."""
    params = [sampling(length, args.temperature) for length in output_lens]
    requests: list[PromptType] = [{"prompt_token_ids": prompt} for prompt in prompts]
    start = time.perf_counter()
    outputs = llm.generate(requests, params, use_tqdm=use_tqdm)
    elapsed = time.perf_counter() - start
    raise_failed(outputs)
    return elapsed, outputs


def sampling(output_len: int, temperature: float) -> SamplingParams:
    """Exactly `output_len` tokens; texts are not needed."""
    from octavo import SamplingParams

    return SamplingParams(temperature=temperature, max_tokens=output_len, ignore_eos=True, detokenize=False)


def check_context(llm: LLM, work: Workload) -> None:
    """Raises UsageError if the longest request does not fit the context."""
    limit = llm.llm_engine.plan.max_model_len
    if work.longest > limit:
        raise UsageError(
            f"the longest request has {work.longest} tokens and the context {limit}; "
            "lower --input-len or --output-len, or raise --max-model-len"
        )


def describe(args: argparse.Namespace, llm: LLM) -> dict[str, Any]:
    """What was measured, without paths."""
    plan = llm.llm_engine.plan
    names = ("dataset", "num_prompts", "input_len", "output_len", "prefix_len", "num_iters", "temperature")
    return {
        "octavo": __version__,
        "benchmark": args.benchmark,
        "model": Path(args.model).name,
        "dtype": plan.dtype,
        "num_threads": plan.num_threads,
        "workload": {name: getattr(args, name) for name in names if hasattr(args, name)},
    }


def at_least(low: int) -> Any:
    """A parser of counts that refuses less than `low`."""

    def parse(text: str) -> int:
        value = parse_count(text)
        if value < low:
            raise ValueError(f"use {low} or more")
        return value

    return typed(parse, "a count")


count = at_least(1)
count_or_zero = at_least(0)
