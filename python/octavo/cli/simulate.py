"""`octavo simulate`: what traffic would look like on a device, without the device and without the model."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import config
from octavo.cli.console import note, print_table, write_json
from octavo.cli.engine import add_model, engine_options, usage_errors
from octavo.cli.errors import CommandError, UsageError
from octavo.cli.options import add_options, given, typed
from octavo.cli.simulate_traffic import add_traffic, make_traffic, settle
from octavo.errors import invalid
from octavo.hf_config import load_model_spec
from octavo.plan.resolver import Plan, resolve
from octavo.version import __version__

if TYPE_CHECKING:
    from octavo.simulate.devices import Device

DESCRIPTION = """\
Serve traffic in virtual time: the real scheduler plans every step, a cost model says how long it takes. Reads
config.json and the safetensors headers only. Prints latencies, throughput, goodput and utilisation.

  octavo simulate ./model --device h200 --rate 64
  octavo simulate ./model --device h200 --traffic sessions --turns 6 --rate 20 --slo-ttft 0.5 --slo-tpot 0.03
  octavo simulate ./model --device h200 --trace requests.jsonl --rate 64 --plot run.png
  octavo simulate ./model --cost-model here.json --traffic closed --clients 16   # from octavo bench steps"""

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
    from octavo.simulate.traffic import check_positive

    asked = settle(args)
    if (args.device is None) == (args.cost_model is None):
        raise UsageError("give --device NAME or --cost-model FILE, one of them")
    with usage_errors():
        device = None if args.device is None else find(args)
        plan = make_plan(args, device)
        requests = make_traffic(args, asked)
        for name in ("slo_ttft", "slo_tpot"):
            if getattr(args, name) is not None:
                check_positive(**{name: getattr(args, name)})
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
    about = describe(args, asked, plan, where)
    show(summary, f"{about['model']} on {where}")
    warn(summary, plan)
    if args.verbose:
        for reason in plan.reasons:
            note(str(reason))
    if args.json:
        write_json(args.json, about | summary)
    if args.plot:
        draw(result, args, f"{about['model']} on {where}")
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
    plan = resolve(model, configs.load, cache, configs.scheduler, here, available_memory=memory)
    if plan.spec.encoder is not None:
        raise invalid("model", args.model, "traffic is of text alone, simulate a model without an encoder")
    return plan


def describe(args: argparse.Namespace, asked: dict[str, Any], plan: Plan, where: str) -> dict[str, Any]:
    """What was simulated, without paths."""
    workload = {name: value for name, value in asked.items() if value is not None}
    return {
        "octavo": __version__,
        "model": Path(args.model).name,
        "device": where,
        "dtype": plan.dtype,
        "kv_tokens": (plan.num_blocks - 1) * plan.block_size,
        "max_num_seqs": plan.max_num_seqs,
        "max_num_batched_tokens": plan.max_num_batched_tokens,
        "kv_bytes": plan.num_blocks * plan.footprint.block_bytes,
        "workload": workload | ({"trace": True} if args.trace else {}),
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
    loads = []
    for name, text, scale, digits in (
        ("kv_use", "KV in use, %", 100, 1),
        ("running", "running", 1, 0),
        ("waiting", "waiting", 1, 0),
        ("step_tokens", "tokens a step", 1, 0),
    ):
        values = summary["load"][name]
        cells = ["-"] * 4 if values is None else [f"{scale * v:,.{digits}f}" for v in values.values()]
        loads.append([text, *cells])
    print_table("", ("of the time", "p50", "p90", "p99", "most"), loads)
    facts = [
        ("requests/s offered", f"{summary['offered_requests_per_second']:,.2f}"),
        ("requests/s", f"{summary['requests_per_second']:,.2f}"),
        ("output tokens/s", f"{summary['output_tokens_per_second']:,.1f}"),
        ("prompt tokens/s", f"{summary['prompt_tokens_per_second']:,.1f}"),
        ("goodput, requests/s", f"{summary['goodput_requests_per_second']:,.2f}"),
        ("requests within the targets", f"{summary['good_share']:.1%}"),
        ("device busy", f"{summary['busy']:.1%}"),
        ("bandwidth, compute while busy", f"{summary['bandwidth_use']:.0%}, {summary['compute_use']:.0%}"),
        ("tokens a step, mean", f"{summary['tokens_a_step']:,.1f}"),
        ("prefix hit rate", f"{summary['prefix_hit_rate']:.1%}"),
        ("preemptions", f"{summary['preemptions']:,}"),
        ("refused", f"{summary['refused']:,}"),
    ]
    if not summary["bandwidth_use"]:  # a table does not know
        facts = [fact for fact in facts if not fact[0].startswith("bandwidth")]
    print_table("", ("", "value"), facts)


def warn(summary: dict[str, Any], plan: Plan) -> None:
    """Says what makes the numbers mean less than they seem to."""
    if summary["overloaded"]:
        note(
            "more arrives than is served: latencies grow for as long as that lasts, so those above depend on "
            "the number of requests; lower --rate, or find the rate at which goodput is highest"
        )
    if summary["refused"]:
        note(
            f"{summary['refused']:,} of {summary['requests']:,} requests were refused: longer than "
            f"max_model_len={plan.max_model_len:,}, or the queue was full"
        )


def draw(result: Any, args: argparse.Namespace, title: str) -> None:
    """Writes the picture. Raises CommandError if that cannot be done."""
    from octavo.simulate.plot import plot

    try:
        plot(result, args.plot, title, ttft=args.slo_ttft)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CommandError(f"cannot write {args.plot}: {reason}") from error
