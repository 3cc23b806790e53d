"""`octavo simulate`: what traffic would look like on a device, without the device and without the model."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import config
from octavo.cli.bench import count, count_or_zero
from octavo.cli.console import note, print_table, write_json
from octavo.cli.engine import add_model, engine_options, usage_errors
from octavo.cli.errors import CommandError, UsageError
from octavo.cli.options import add_options, given, typed
from octavo.cli.workload import DATASETS, OUTPUT_SIGMA, PROMPT_SIGMA, lognormal_lengths
from octavo.hf_config import load_model_spec
from octavo.plan.resolver import Plan, resolve
from octavo.version import __version__

if TYPE_CHECKING:
    from octavo.simulate.devices import Device
    from octavo.simulate.traffic import Requests

DESCRIPTION = """\
Serve traffic in virtual time: the real scheduler plans every step, a cost model says how long it takes. Reads
config.json and the safetensors headers only. Prints latencies, throughput, goodput and utilisation.

  octavo simulate ./model --device h200 --rate 64
  octavo simulate ./model --device h200 --traffic sessions --turns 6 --rate 20 --slo-ttft 0.5 --slo-tpot 0.03
  octavo simulate ./model --device a100 --trace requests.jsonl --plot run.png
  octavo simulate ./model --cost-model here.json --traffic closed --clients 16   # from octavo bench steps"""

TRAFFIC = ("poisson", "sessions", "closed")
ENGINE_FLAGS = (
    *("dtype", "load_format", "block_size", "enable_prefix_caching", "kv_cache_memory_bytes"),
    *("num_gpu_blocks_override", "gpu_memory_utilization", "max_model_len", "max_num_seqs"),
    *("max_num_batched_tokens", "enable_chunked_prefill", "long_prefill_token_threshold"),
    *("scheduling_policy", "victim", "watermark", "full_prompt_gate", "max_overtakes"),
)
DEFAULT_MEMORY_SHARE = 0.9  # of a device that serves one model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `octavo simulate`."""
    add_model(parser)
    device = parser.add_argument_group("device")
    device.add_argument("--device", metavar="NAME", help="h200, h100, a100, l40s or cpu (an example desktop)")
    device.add_argument("--cost-model", metavar="FILE", help="steps measured by octavo bench steps, instead")
    device.add_argument("--memory", type=size, metavar="SIZE", help="memory (default: the device's)")
    for name, text in (
        ("--bandwidth-share", "share of the bandwidth that kernels reach"),
        ("--compute-share", "share of the arithmetic that kernels reach"),
        ("--step-us", "microseconds of each step that nothing hides"),
    ):
        device.add_argument(name, type=float, metavar="X", help=text)
    add_traffic(parser.add_argument_group("traffic"))
    goals = parser.add_argument_group("report")
    goals.add_argument("--slo-ttft", type=float, metavar="SECONDS", help="a good request starts within it")
    goals.add_argument("--slo-tpot", type=float, metavar="SECONDS", help="and takes this for a token")
    goals.add_argument("--json", metavar="FILE", help="write the report to this file")
    goals.add_argument("--plot", metavar="FILE", help="draw the run (PNG; needs matplotlib)")
    add_options(parser.add_argument_group("engine"), chosen_options())


def add_traffic(group: argparse._ArgumentGroup) -> None:
    """Who asks what when."""
    group.add_argument("--traffic", choices=TRAFFIC, default="poisson", help="default: poisson")
    group.add_argument("--trace", metavar="FILE", help="JSONL of timestamp, input_length, output_length")
    group.add_argument("--time-scale", type=float, metavar="X", default=1.0, help="0.5: twice the trace's")
    group.add_argument("--rate", type=float, metavar="X", default=1.0, help="requests a second (default: 1)")
    group.add_argument(
        "--burstiness", type=float, metavar="X", default=1.0, help="1: Poisson; less comes in bursts"
    )
    group.add_argument("--clients", type=count, metavar="N", default=8, help="of closed (default: 8)")
    group.add_argument("--turns", type=count, metavar="N", default=4, help="of a session (default: 4)")
    group.add_argument(
        "--think-time", type=float, metavar="S", default=0.0, help="between turns (default: 0)"
    )
    group.add_argument("--num-requests", type=count, metavar="N", default=1000, help="default: 1000")
    group.add_argument("--dataset", choices=DATASETS, default="sharegpt-like", help="default: sharegpt-like")
    group.add_argument("--input-len", type=count, metavar="N", default=220, help="mean (default: 220)")
    group.add_argument("--output-len", type=count, metavar="N", default=200, help="mean (default: 200)")
    group.add_argument("--prefix-len", type=count_or_zero, metavar="N", default=0, help="shared tokens")
    group.add_argument("--num-prefixes", type=count, metavar="N", default=1, help="different ones")
    group.add_argument("--seed", type=count_or_zero, metavar="N", default=0, help="default: 0")


def size(text: str) -> int:
    """A size such as 80GiB."""
    parsed: int = typed(lambda value: config.parse_size(value, "memory"), "a size")(text)
    return parsed


def chosen_options() -> list[Any]:
    """The engine's options that change what is planned."""
    return [option for option in engine_options() if option.name in ENGINE_FLAGS]


def run(args: argparse.Namespace) -> int:
    """Simulates, prints the table, writes the files."""
    from octavo import core
    from octavo.simulate import cost, report

    if (args.device is None) == (args.cost_model is None):
        raise UsageError("give --device NAME or --cost-model FILE, one of them")
    with usage_errors():
        device = None if args.device is None else find(args)
        plan = make_plan(args, device)
        requests = make_traffic(args)
        if device is None:
            model, measured = cost.read_table(args.cost_model)
            submit = float(measured.get("submit_seconds", 0.0))
            where = f"steps measured on {measured.get('device', 'a device')}"
        else:
            model, submit, where = cost.roofline(plan.footprint, device), 0.0, device.name
        lag = 1 if device is not None and device.runs_ahead else 0
        engine = core.EngineConfig(**plan.engine_options())
        result = core.serve(engine, model, requests, lag=lag, submit_seconds=submit)
    summary = report.summarize(result, report.Targets(args.slo_ttft, args.slo_tpot))
    about = describe(args, plan, where)
    show(summary, f"{about['model']} on {where}")
    if args.verbose:
        for reason in plan.reasons:
            note(str(reason))
    if args.json:
        write_json(args.json, about | summary)
    if args.plot:
        draw(result, args.plot, f"{about['model']} on {where}")
    return 0


def find(args: argparse.Namespace) -> Device:
    """The device that the command line names, with what it says about it."""
    from octavo.simulate.devices import find_device

    return find_device(
        args.device,
        memory_bytes=args.memory,
        bandwidth_share=args.bandwidth_share,
        compute_share=args.compute_share,
        step_seconds=None if args.step_us is None else args.step_us * 1e-6,
    )


def make_plan(args: argparse.Namespace, device: Device | None) -> Plan:
    """The plan of an engine on that device."""
    configs = config.from_options({"model": args.model, **given(args, chosen_options())})
    cache, model = configs.cache, configs.model
    memory = args.memory
    if device is not None:
        memory = device.memory_bytes
        if cache.gpu_memory_utilization is None:
            cache = dataclasses.replace(cache, gpu_memory_utilization=DEFAULT_MEMORY_SHARE)
        if model.dtype == "auto":
            # `auto` asks what this machine's CPU multiplies fast.
            dtype = load_model_spec(config.model_folder(args.model)).dtype
            model = dataclasses.replace(model, dtype=dtype)
    # What is planned for need not be here; the pool is the same, whatever kernels fill it.
    here = config.DeviceConfig(device="cpu")
    return resolve(model, configs.load, cache, configs.scheduler, here, available_memory=memory)


def make_traffic(args: argparse.Namespace) -> Requests:
    """The requests that the command line describes."""
    import numpy as np

    from octavo.simulate import traffic

    if args.trace is not None:
        return traffic.read_trace(args.trace, time_scale=args.time_scale)
    rng = np.random.default_rng(args.seed)
    number = args.num_requests
    lens = []
    for mean, sigma in ((args.input_len, PROMPT_SIGMA), (args.output_len, OUTPUT_SIGMA)):
        random = args.dataset == "random"
        lens.append(np.full(number, mean) if random else lognormal_lengths(rng, number, mean, sigma))
    shape = traffic.Shape(
        num_requests=number,
        input_lens=lens[0],
        output_lens=lens[1],
        prefix_len=args.prefix_len,
        num_prefixes=args.num_prefixes,
    )
    requests = traffic.make_requests(shape, rng)
    if args.traffic == "poisson":
        traffic.open_loop(requests, args.rate, rng, burstiness=args.burstiness)
    elif args.traffic == "sessions":
        traffic.sessions(requests, args.rate, args.turns, rng, think_seconds=args.think_time)
    else:
        traffic.closed_loop(requests, args.clients, think_seconds=args.think_time)
    return requests


def describe(args: argparse.Namespace, plan: Plan, where: str) -> dict[str, Any]:
    """What was simulated, without paths."""
    names = ("traffic", "rate", "burstiness", "clients", "turns", "think_time", "num_requests", "dataset")
    lengths = ("input_len", "output_len", "prefix_len", "num_prefixes", "seed", "time_scale")
    kept = ("time_scale",) if args.trace else (*names, *lengths)
    return {
        "octavo": __version__,
        "model": Path(args.model).name,
        "device": where,
        "dtype": plan.dtype,
        "kv_tokens": (plan.num_blocks - 1) * plan.block_size,
        "max_num_seqs": plan.max_num_seqs,
        "max_num_batched_tokens": plan.max_num_batched_tokens,
        "kv_bytes": plan.num_blocks * plan.footprint.block_bytes,
        "workload": {name: getattr(args, name) for name in kept} | ({"trace": True} if args.trace else {}),
    }


def show(summary: dict[str, Any], title: str) -> None:
    """The report for people."""
    header = ("seconds", "p50", "p90", "p99")
    rows = []
    for name, text in (
        ("ttft", "to first token"),
        ("tpot", "a token, mean of a request"),
        ("itl", "between tokens"),
        ("e2e", "to last token"),
    ):
        values = summary[name]
        cells = ["-"] * 3 if values is None else [f"{value:.4g}" for value in values.values()]
        rows.append([text, *cells])
    print_table(f"{title}: {summary['requests']:,} requests in {summary['seconds']:,.1f} s", header, rows)
    facts = [
        ("requests/s", f"{summary['requests_per_second']:,.2f}"),
        ("output tokens/s", f"{summary['output_tokens_per_second']:,.1f}"),
        ("prompt tokens/s", f"{summary['prompt_tokens_per_second']:,.1f}"),
        ("goodput, requests/s", f"{summary['goodput_requests_per_second']:,.2f}"),
        ("requests within the targets", f"{summary['good_share']:.1%}"),
        ("device busy", f"{summary['busy']:.1%}"),
        ("bandwidth, compute while busy", f"{summary['bandwidth_use']:.0%}, {summary['compute_use']:.0%}"),
        ("KV in use, mean and most", f"{summary['kv_use_mean']:.1%}, {summary['kv_use_most']:.1%}"),
        ("running, waiting at most", f"{summary['running_most']:,}, {summary['waiting_most']:,}"),
        ("tokens a step", f"{summary['tokens_a_step']:,.1f}"),
        ("prefix hit rate", f"{summary['prefix_hit_rate']:.1%}"),
        ("preemptions", f"{summary['preemptions']:,}"),
        ("refused", f"{summary['refused']:,}"),
    ]
    if not summary["bandwidth_use"]:  # a table does not know
        facts = [fact for fact in facts if not fact[0].startswith("bandwidth")]
    print_table("", ("", "value"), facts)


def draw(result: Any, path: str, title: str) -> None:
    """Writes the picture. Raises CommandError if that cannot be done."""
    from octavo.simulate.plot import plot

    try:
        plot(result, path, title)
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot write {path}: {error}") from error
