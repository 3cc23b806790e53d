"""Who asks what when: arrays of requests for `octavo.core.serve`, from a seed or from a trace."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo import core
from octavo.errors import ConfigError, file_failure, invalid, shown

Requests = NDArray[np.void]
_MOST_REQUESTS = 10_000_000
_INT32_MAX = 2**31 - 1
_HASHED_TOKENS = 512  # of a block that a trace's hash_ids name
_MOST_MS = 1e15  # some thirty thousand years: milliseconds on both sides of zero stay exact


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the requests of a synthetic workload look like."""

    num_requests: int
    input_lens: NDArray[np.int64]  # one a request; tokens of its own
    output_lens: NDArray[np.int64]
    prefix_len: int = 0
    num_prefixes: int = 1


def make_requests(shape: Shape, rng: np.random.Generator) -> Requests:
    """Return requests that all arrive at once; the functions below say when."""
    requests = np.zeros(shape.num_requests, core.SERVE_REQUEST)
    requests["after"] = requests["prefix"] = requests["like"] = -1
    requests["input_len"] = shape.input_lens
    requests["output_len"] = shape.output_lens
    if shape.prefix_len:
        requests["prefix"] = rng.integers(0, shape.num_prefixes, shape.num_requests)
        requests["prefix_len"] = shape.prefix_len
    return requests


def open_loop(requests: Requests, rate: float, rng: np.random.Generator, *, burstiness: float = 1.0) -> None:
    """Let `rate` requests arrive a second, whatever became of those before.

    Gaps are gamma-distributed: `burstiness` 1 is a Poisson process, less comes in bursts, more is even.
    """
    check_positive(rate=rate, burstiness=burstiness)
    gaps = rng.gamma(burstiness, 1 / (rate * burstiness), len(requests))
    requests["arrival"] = np.cumsum(gaps) - gaps[0]


def closed_loop(requests: Requests, clients: int, *, think_seconds: float = 0.0) -> None:
    """Let each of `clients` send its next request `think_seconds` after its last answer."""
    check_positive(clients=clients)
    index = np.arange(len(requests))
    requests["after"] = np.where(index < clients, -1, index - clients)
    requests["arrival"] = np.where(index < clients, 0.0, think_seconds)


def sessions(
    requests: Requests, rate: float, turns: int, rng: np.random.Generator, *, think_seconds: float
) -> None:
    """Make conversations of `turns` requests, each of which begins with all that was said before.

    Conversations begin so that `rate` requests arrive a second; thinking takes exponential times.
    """
    check_positive(rate=rate, turns=turns)
    index = np.arange(len(requests))
    first = index % turns == 0
    requests["after"] = np.where(first, -1, index - 1)
    requests["grows"] = ~first
    requests["prefix_len"] = np.where(first, requests["prefix_len"], 0)
    starts = np.cumsum(rng.exponential(turns / rate, len(requests)))
    thinking = rng.exponential(think_seconds, len(requests)) if think_seconds > 0 else 0.0
    requests["arrival"] = np.where(first, starts[index // turns] - starts[0], thinking)


def read_trace(
    path: str, *, time_scale: float = 1.0, rate: float | None = None, first: int | None = None
) -> Requests:
    """Return the requests of a JSONL trace.

    Each line has timestamp (milliseconds), input_length and output_length; session_id says that prompts of
    one session begin alike as far as they reach, prefix_id and prefix_length that some first tokens are
    shared, and without either hash_ids names the prompt's blocks of 512 tokens (the last may be shorter):
    prompts share what begins with the same ids. Other keys are ignored. `time_scale` 0.5 makes twice the
    traffic of it, `rate` as many requests a second on average; only the `first` are taken. Raises
    ConfigError with the line that cannot be read.
    """
    check_positive(time_scale=time_scale)
    rows: list[_Row] = []
    ids: dict[str, int] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ConfigError(f"the trace {file_failure(path, error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the trace {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(_trace_row(json.loads(line), ids))
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
                reason = f"{error} is missing" if isinstance(error, KeyError) else error
                raise ConfigError(f"line {number} of {path} is no request: {reason}") from error
    if not 0 < len(rows) <= _MOST_REQUESTS:
        raise ConfigError(f"the trace {path} has {len(rows)} requests; give 1 to {_MOST_REQUESTS}")
    rows.sort(key=lambda row: row[0])
    rows = rows[:first]
    requests = np.zeros(len(rows), core.SERVE_REQUEST)
    requests["after"] = requests["like"] = -1
    for name, values in zip(("arrival", "input_len", "output_len", "prefix", "prefix_len"), zip(*rows)):
        requests[name] = values
    _share_blocks(requests, [row[5] for row in rows])
    requests["arrival"] = (requests["arrival"] - rows[0][0]) / 1000
    if rate is not None:
        check_positive(rate=rate)
        seconds = float(requests["arrival"][-1])
        if seconds == 0:
            raise ConfigError(f"the trace {path} has no rate, all of it arrives at once: leave rate out")
        time_scale *= (len(rows) - 1) / seconds / rate
    requests["arrival"] *= time_scale
    return requests


# Milliseconds, tokens of its own, output tokens, prefix, its tokens, hash ids of the prompt's blocks.
_Row = tuple[float, int, int, int, int, list[int]]


def _trace_row(entry: dict[str, Any], ids: dict[str, int]) -> _Row:
    if not isinstance(entry, dict):
        raise TypeError("it is not a JSON object")
    timestamp = float(entry["timestamp"])
    if not abs(timestamp) <= _MOST_MS:
        raise ValueError(f"timestamp={timestamp}, use milliseconds up to {_MOST_MS:g}")
    input_len, output_len = _length(entry, "input_length"), _length(entry, "output_length")
    if "session_id" in entry:
        shared, key = input_len, f"session {entry['session_id']}"
    elif "prefix_id" in entry:
        shared, key = min(_length(entry, "prefix_length"), input_len), f"prefix {entry['prefix_id']}"
    else:
        return timestamp, input_len, output_len, -1, 0, _hash_ids(entry, input_len)
    return timestamp, input_len - shared, output_len, ids.setdefault(key, len(ids)), shared, []


def _hash_ids(entry: dict[str, Any], input_len: int) -> list[int]:
    hashes = entry.get("hash_ids", [])
    if not isinstance(hashes, list) or not all(type(value) is int for value in hashes):
        raise ValueError(f"hash_ids={shown(hashes)}, use a list of whole numbers")
    blocks = -(-input_len // _HASHED_TOKENS)
    if hashes and len(hashes) != blocks:
        raise ValueError(
            f"hash_ids has {len(hashes)} blocks of {_HASHED_TOKENS} tokens, "
            f"but input_length={input_len} has {blocks}"
        )
    return hashes


def _share_blocks(requests: Requests, hashes: list[list[int]]) -> None:
    """Let each prompt begin as the first did that begins with the same blocks."""
    blocks: dict[tuple[int, int], tuple[int, int]] = {}  # (the block before, id): this block, whose it is
    for index, of_prompt in enumerate(hashes):
        before, owner, shared = -1, -1, 0
        for depth, value in enumerate(of_prompt, 1):
            if (known := blocks.get((before, value))) is None:
                known = blocks[before, value] = (len(blocks), index)
            before = known[0]
            if known[1] != index:
                owner, shared = known[1], depth * _HASHED_TOKENS
        if owner < 0:
            continue
        length = int(requests["input_len"][index])
        others = int(requests["input_len"][owner]) + int(requests["prefix_len"][owner])
        shared = min(shared, length, others)
        requests["like"][index], requests["prefix_len"][index] = owner, shared
        requests["input_len"][index] = length - shared


def _length(entry: dict[str, Any], name: str) -> int:
    value = entry[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _INT32_MAX:
        raise ValueError(f"{name}={shown(value)}, use a positive number of tokens")
    return value


def check_positive(**values: float) -> None:
    """Raises ConfigError for the first value that is not a positive finite number."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise invalid(name, value, "use a positive number")
