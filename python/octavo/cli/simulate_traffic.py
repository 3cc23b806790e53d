"""The flags of `octavo simulate` that say who asks what when, and the requests that they make."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from octavo.cli.bench import count, count_or_zero
from octavo.cli.errors import UsageError
from octavo.cli.workload import DATASETS, OUTPUT_SIGMA, PROMPT_SIGMA, lognormal_lengths

if TYPE_CHECKING:
    from octavo.simulate.traffic import Requests

TRAFFIC = ("poisson", "sessions", "closed")
TRACE = "trace"
# Each flag with its default and the kinds of traffic that it means something for.
FLAGS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "rate": (1.0, ("poisson", "sessions", TRACE)),
    "burstiness": (1.0, ("poisson",)),
    "clients": (8, ("closed",)),
    "turns": (4, ("sessions",)),
    "think_time": (0.0, ("sessions", "closed")),
    "num_requests": (1000, (*TRAFFIC, TRACE)),
    "dataset": ("sharegpt-like", TRAFFIC),
    "input_len": (220, TRAFFIC),
    "output_len": (200, TRAFFIC),
    "prefix_len": (0, TRAFFIC),
    "num_prefixes": (1, TRAFFIC),
    "seed": (0, TRAFFIC),
    "time_scale": (1.0, (TRACE,)),
}


def add_traffic(group: argparse._ArgumentGroup) -> None:
    """Adds the flags; what was not given is None until `settle`."""
    group.add_argument("--traffic", choices=TRAFFIC, help="default: poisson")
    group.add_argument("--trace", metavar="FILE", help="JSONL of timestamp (ms), input_length, output_length")
    for name, metavar, kind, text in (
        ("rate", "X", float, "requests a second (default: 1, or the trace's own)"),
        ("time-scale", "X", float, "0.5: twice the trace's rate (default: 1)"),
        ("burstiness", "X", float, "of poisson; less than 1 comes in bursts (default: 1)"),
        ("clients", "N", count, "of closed: each waits for its answer (default: 8)"),
        ("turns", "N", count, "of a session (default: 4)"),
        ("think-time", "S", float, "seconds between turns, or requests of a client (default: 0)"),
        ("num-requests", "N", count, "default: 1000, or all of the trace"),
        ("input-len", "N", count, "mean tokens of a request's own (default: 220)"),
        ("output-len", "N", count, "mean tokens (default: 200)"),
        ("prefix-len", "N", count_or_zero, "shared tokens before them (default: 0)"),
        ("num-prefixes", "N", count, "different ones (default: 1)"),
        ("seed", "N", count_or_zero, "default: 0"),
    ):
        group.add_argument(f"--{name}", metavar=metavar, type=kind, help=text)
    group.add_argument(
        "--dataset", choices=DATASETS, help="lengths (default: sharegpt-like; random: all equal)"
    )


def settle(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, with defaults. Raises UsageError for a flag that changes nothing."""
    if args.trace is not None and args.traffic is not None:
        raise UsageError("give --traffic or --trace, one of them: a trace says who asks when")
    kind = TRACE if args.trace is not None else args.traffic or "poisson"
    name_of_kind = "--trace" if kind == TRACE else f"--traffic {kind}"
    settled: dict[str, Any] = {} if kind == TRACE else {"traffic": kind}
    for name, (default, kinds) in FLAGS.items():
        value = getattr(args, name)
        if kind in kinds:
            # A trace has a rate and a number of its own.
            own = kind == TRACE and name != "time_scale"
            settled[name] = default if value is None and not own else value
        elif value is not None:
            flag = f"--{name.replace('_', '-')}"
            fits = " or ".join("--trace" if other == TRACE else f"--traffic {other}" for other in kinds)
            raise UsageError(f"{flag} changes nothing with {name_of_kind}: leave it out, or use {fits}")
    if kind == TRACE and args.rate is not None and args.time_scale is not None:
        raise UsageError("give --rate or --time-scale, one of them: both say how fast the trace is")
    return settled


def make_traffic(args: argparse.Namespace, asked: dict[str, Any]) -> Requests:
    """The requests that `settle` describes."""
    import numpy as np

    from octavo.simulate import traffic

    if args.trace is not None:
        return traffic.read_trace(
            args.trace, time_scale=asked["time_scale"], rate=asked["rate"], first=asked["num_requests"]
        )
    rng = np.random.default_rng(asked["seed"])
    number = asked["num_requests"]
    lens = []
    for mean, sigma in ((asked["input_len"], PROMPT_SIGMA), (asked["output_len"], OUTPUT_SIGMA)):
        random = asked["dataset"] == "random"
        lens.append(np.full(number, mean) if random else lognormal_lengths(rng, number, mean, sigma))
    shape = traffic.Shape(
        num_requests=number,
        input_lens=lens[0],
        output_lens=lens[1],
        prefix_len=asked["prefix_len"],
        num_prefixes=asked["num_prefixes"],
    )
    requests = traffic.make_requests(shape, rng)
    if asked["traffic"] == "poisson":
        traffic.open_loop(requests, asked["rate"], rng, burstiness=asked["burstiness"])
    elif asked["traffic"] == "sessions":
        traffic.sessions(requests, asked["rate"], asked["turns"], rng, think_seconds=asked["think_time"])
    else:
        traffic.closed_loop(requests, asked["clients"], think_seconds=asked["think_time"])
    return requests
