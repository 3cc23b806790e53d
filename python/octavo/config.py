"""What a user may choose, as six frozen dataclasses. `octavo.plan.resolve` turns them into one Plan.

None means "choose for me" everywhere; the Plan records what was chosen and why. Field names are vLLM's where
vLLM has the option. Every field is checked when its dataclass is made, before any file is opened.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from octavo.env import LOG_LEVELS
from octavo.errors import did_you_mean, invalid
from octavo.hf.quantization import METHODS
from octavo.kv_events.settings import KvEventsConfig, parse_kv_events_config
from octavo.speculation import Speculation, parse_speculation

DTYPES = ("auto", "float32", "bfloat16", "float16")
_DTYPE_ALIASES = {
    "float": "float32",
    "fp32": "float32",
    "bf16": "bfloat16",
    "half": "float16",
    "fp16": "float16",
}
KV_CACHE_DTYPES = ("auto", "fp8")
_KV_CACHE_ALIASES = {"fp8_e4m3": "fp8"}
LOAD_FORMATS = ("auto", "safetensors", "dummy")
POLICIES = ("fcfs", "priority")
VICTIMS = ("cost", "last")
DEVICES = ("auto", "cpu", "cuda")
TOKENIZER_MODES = ("auto", "slow")
HASH_ALGORITHMS = ("xxh3", "sha256_cbor")
_VLLM_HASHES = ("sha256", "xxhash", "xxhash_cbor")  # vLLM's other values of prefix_caching_hash_algo
MAX_BLOCK_SIZE = 256

_INT32_MAX = 2**31 - 1
_LENGTH_UNITS = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}
_SIZE_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_length(value: int | str | None, field: str = "max_model_len") -> int | None:
    """Return a number of tokens from 8192, "8192", "8k" (8,000), "8K" (8,192) or "auto" and None (None).

    The case of the unit means what it means to vLLM. Raises ValueError for anything else.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() == "auto"):
        return None
    number: float
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmM]?)\s*", value)
        if match is None:
            raise invalid(field, value, 'use a number of tokens such as 8192, "8k" (8,000) or "8K" (8,192)')
        number = float(match[1]) * _LENGTH_UNITS[match[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise invalid(field, value, 'use a number of tokens such as 8192, "8k" (8,000) or "8K" (8,192)')
    return _in_range(field, int(number), 1, _INT32_MAX)


def parse_size(value: int | str | None, field: str = "memory") -> int | None:
    """Return bytes from an integer, "80GiB" (1024), "80GB" (1000) or "80G" (1024); None stays None.

    Raises ValueError for anything else.
    """
    if value is None:
        return None
    number: float
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?\s*", value.lower())
        if match is None or (match[3] == "ib" and not match[2]):
            raise invalid(field, value, 'use bytes or a size such as "80GiB" or "512MB"')
        base = 1000 if match[3] == "b" else 1024
        number = float(match[1]) * base ** _SIZE_POWERS[match[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise invalid(field, value, 'use bytes or a size such as "80GiB" or "512MB"')
    return _in_range(field, int(number), 1, 2**63 - 1)


def parse_dtype(value: Any, field: str = "dtype") -> str:
    """Return one of DTYPES; bf16, fp16, half, fp32 and float are understood. Raises ValueError otherwise."""
    if not isinstance(value, str):
        raise invalid(field, value, f"use one of {', '.join(DTYPES)}")
    name = value.removeprefix("torch.")
    return _one_of(field, _DTYPE_ALIASES.get(name, name), DTYPES)


def parse_kv_cache_dtype(value: Any, field: str = "kv_cache_dtype") -> str:
    """Return one of KV_CACHE_DTYPES; fp8_e4m3, vLLM's longer name, is fp8. Raises ValueError otherwise."""
    if value in ("fp8_e5m2", "fp8_inc", "fp8_ds_mla"):
        raise invalid(field, value, "use fp8, which is e4m3, or auto: other kinds of fp8 are not supported")
    name = _KV_CACHE_ALIASES.get(value, value) if isinstance(value, str) else value
    return _one_of(field, name, KV_CACHE_DTYPES)


def _in_range(field: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(field, value, f"use an integer from {low} to {high}")
    if not low <= value <= high:
        raise invalid(field, value, f"use an integer from {low} to {high}")
    return value


def _one_of(field: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise invalid(field, value, f"use one of {', '.join(choices)}{hint}")
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _flag(field: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise invalid(field, value, "use True or False")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, at what precision and length."""

    model: str | os.PathLike[str]  # a folder with config.json and *.safetensors, or "tiny"
    tokenizer: str | os.PathLike[str] | None = None  # a folder; None: the model's
    tokenizer_mode: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None  # fp8: of linear layers; a quantized checkpoint says itself what it is
    max_model_len: int | str | None = None  # prompt + output tokens of a request; "8K" is 8,192
    seed: int = 0  # seeds the requests that bring no seed of their own, and dummy weights

    def __post_init__(self) -> None:
        for field in ("model", "tokenizer"):
            value = getattr(self, field)
            optional = field == "tokenizer" and value is None
            if not optional and (not isinstance(value, (str, os.PathLike)) or not os.fspath(value)):
                raise invalid(field, value, 'use the path of a model folder, or "tiny"')
        _one_of("tokenizer_mode", self.tokenizer_mode, TOKENIZER_MODES)
        object.__setattr__(self, "dtype", parse_dtype(self.dtype))
        if self.quantization is not None:
            _one_of("quantization", self.quantization, tuple(METHODS))
        object.__setattr__(self, "max_model_len", parse_length(self.max_model_len))
        _in_range("seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """Where the weights come from."""

    load_format: str = "auto"  # auto = safetensors; dummy = random weights, no file is read but config.json

    def __post_init__(self) -> None:
        _one_of("load_format", self.load_format, LOAD_FORMATS)


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The KV pool. At most one of the three sizes may be given."""

    block_size: int | None = None  # tokens of a block
    kv_cache_dtype: str = "auto"  # what keys and values are kept in: auto (the model's dtype) or fp8 (e4m3)
    enable_prefix_caching: bool = True
    sub_block_hits: bool = True  # cached prefixes may end inside a block, which is then copied
    mamba_cache_interval: int = 0  # tokens between states that stay cached; 0: where prompts end; -1: all
    gpu_memory_utilization: float | None = None  # share of the memory (a GPU: of all of it) to use
    kv_cache_memory_bytes: int | str | None = None  # bytes of the pool
    num_gpu_blocks_override: int | None = None  # blocks of the pool, the null block included
    kv_offloading_size: float | None = None  # GiB of host memory for what the pool evicts
    kv_events_config: Mapping[str, Any] | None = None  # where to publish what the prefix cache holds
    prefix_caching_hash_algo: str = "xxh3"  # what names blocks in KV events; xxh3: new names in each process

    def __post_init__(self) -> None:
        if self.block_size is not None:
            size = _in_range("block_size", self.block_size, 1, MAX_BLOCK_SIZE)
            if size & (size - 1):
                raise invalid(
                    "block_size", size, f"use a power of two up to {MAX_BLOCK_SIZE}, for example 16"
                )
        object.__setattr__(self, "kv_cache_dtype", parse_kv_cache_dtype(self.kv_cache_dtype))
        _flag("enable_prefix_caching", self.enable_prefix_caching)
        _in_range("mamba_cache_interval", self.mamba_cache_interval, -1, _INT32_MAX)
        _flag("sub_block_hits", self.sub_block_hits)
        share = self.gpu_memory_utilization
        if share is not None and not (_is_number(share) and 0 < share <= 1):
            raise invalid("gpu_memory_utilization", share, "use a share of memory above 0 and at most 1")
        size_in_bytes = parse_size(self.kv_cache_memory_bytes, "kv_cache_memory_bytes")
        object.__setattr__(self, "kv_cache_memory_bytes", size_in_bytes)
        object.__setattr__(self, "kv_events_config", parse_kv_events_config(self.kv_events_config))
        if self.kv_events.enabled and not self.enable_prefix_caching:
            remedy = "leave prefix caching on, events tell what it holds; or disable the events"
            raise invalid("enable_prefix_caching", False, remedy)
        self._check_hash_algo()
        self._check_offloading()
        if self.num_gpu_blocks_override is not None:
            _in_range("num_gpu_blocks_override", self.num_gpu_blocks_override, 2, _INT32_MAX)
            if size_in_bytes is not None:
                remedy = "give either it or kv_cache_memory_bytes, both size the same pool"
                raise invalid("num_gpu_blocks_override", self.num_gpu_blocks_override, remedy)

    def _check_hash_algo(self) -> None:
        if self.prefix_caching_hash_algo in _VLLM_HASHES:
            remedy = (
                "use sha256_cbor, whose names are those of vLLM, or xxh3; vLLM's other hashes pickle or can "
                "be forged (lookups compare tokens, whatever names blocks)"
            )
            raise invalid("prefix_caching_hash_algo", self.prefix_caching_hash_algo, remedy)
        _one_of("prefix_caching_hash_algo", self.prefix_caching_hash_algo, HASH_ALGORITHMS)

    def _check_offloading(self) -> None:
        size = self.kv_offloading_size
        if size is None:
            return
        if not _is_number(size) or not 0 < size <= 2**20:
            raise invalid("kv_offloading_size", size, "use GiB above 0, for example 4, or leave it out")
        if not self.enable_prefix_caching:
            remedy = "leave prefix caching on, what is offloaded is found through it; or offload nothing"
            raise invalid("enable_prefix_caching", False, remedy)

    @property
    def offloading_bytes(self) -> int:
        """Bytes of the host tier behind the pool; 0: none."""
        return int((self.kv_offloading_size or 0) * 2**30)

    @property
    def kv_events(self) -> KvEventsConfig:
        """The parsed kv_events_config."""
        return parse_kv_events_config(self.kv_events_config)


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Limits and policies of a step."""

    max_num_seqs: int | None = None  # rows of a step
    max_num_batched_tokens: int | None = None  # tokens of a step
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0  # tokens of one prompt in one step; 0: no limit
    scheduling_policy: str = "fcfs"
    priority_aging_ms: int = 10_000  # waiting this long outweighs one level of priority; 0: never
    victim: str = "cost"  # whom to preempt: the least recompute per freed block, or the last in order
    watermark: float = 0.0  # share of the pool kept free when a waiting request is admitted
    full_prompt_gate: bool = True  # admit a request only when the pool can hold its whole prompt
    max_overtakes: int = 8  # how many later requests may pass a head of the queue that does not fit
    speculative_config: Mapping[str, Any] | None = None  # who guesses tokens for a step to verify

    def __post_init__(self) -> None:
        for field in ("max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, field) is not None:
                _in_range(field, getattr(self, field), 1, 2**20)
        _flag("enable_chunked_prefill", self.enable_chunked_prefill)
        _flag("full_prompt_gate", self.full_prompt_gate)
        _in_range("long_prefill_token_threshold", self.long_prefill_token_threshold, 0, _INT32_MAX)
        _one_of("scheduling_policy", self.scheduling_policy, POLICIES)
        _one_of("victim", self.victim, VICTIMS)
        _in_range("priority_aging_ms", self.priority_aging_ms, 0, 2**53)
        _in_range("max_overtakes", self.max_overtakes, 0, _INT32_MAX)
        if not (_is_number(self.watermark) and 0 <= self.watermark < 1):
            raise invalid("watermark", self.watermark, "use a share of the pool from 0 to below 1")
        parse_speculation(self.speculative_config)

    @property
    def speculation(self) -> Speculation:
        """The parsed speculative_config."""
        return parse_speculation(self.speculative_config)


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where a step runs."""

    device: str = "auto"  # auto: cuda where this build has its ops and there is a GPU, else cpu
    enforce_eager: bool = False  # launch every kernel by itself: no CUDA graphs
    batch_invariant: bool = False  # a request's logits are the same bits alone and in any batch; slower
    num_threads: int | None = None  # threads of a step on the CPU; None: OCTAVO_NUM_THREADS, else every core

    def __post_init__(self) -> None:
        _one_of("device", self.device, DEVICES)
        _flag("enforce_eager", self.enforce_eager)
        _flag("batch_invariant", self.batch_invariant)
        if self.num_threads is not None:
            _in_range("num_threads", self.num_threads, 1, 1024)


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is said while running."""

    disable_log_stats: bool = True
    level: str | None = None  # None: OCTAVO_LOG_LEVEL, else warning

    def __post_init__(self) -> None:
        _flag("disable_log_stats", self.disable_log_stats)
        if self.level is not None:
            _one_of("level", self.level, LOG_LEVELS)


class Configs(NamedTuple):
    """The six configurations in the order `octavo.plan.resolve` takes them."""

    model: ModelConfig
    load: LoadConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    device: DeviceConfig
    log: LogConfig


def option_names() -> tuple[str, ...]:
    """Return the name of every option, in the order of the dataclasses."""
    return tuple(field.name for part in _PARTS for field in dataclasses.fields(part))


def from_options(options: dict[str, Any]) -> Configs:
    """Sort flat keyword options into the six dataclasses.

    Raises TypeError for an unknown name (with the nearest known one) and ValueError for a bad value.
    """
    known = option_names()
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known)
            raise TypeError(f"unknown option {name!r}{hint}; the options are {', '.join(known)}")
    parts = []
    for part in _PARTS:
        names = {field.name for field in dataclasses.fields(part)}
        parts.append(part(**{name: value for name, value in options.items() if name in names}))
    return Configs(*parts)


def model_folder(model: str | os.PathLike[str]) -> Path:
    """Return the folder of a model: a path, or "tiny", the model inside the package.

    Raises ValueError if there is no such folder.
    """
    if model == "tiny":
        return Path(__file__).parent / "assets" / "tiny"
    folder = Path(model).expanduser()
    if not folder.is_dir():
        remedy = 'use the path of a folder with config.json and *.safetensors (download it first), or "tiny"'
        raise invalid("model", os.fspath(model), remedy)
    return folder


_PARTS: tuple[Any, ...] = (ModelConfig, LoadConfig, CacheConfig, SchedulerConfig, DeviceConfig, LogConfig)
