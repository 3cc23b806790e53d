"""The six configurations -> one immutable Plan: every choice made, with its reason, and the memory ledger.

A Plan is made before anything is loaded; it reads config.json and safetensors headers only. What the user set
is kept or refused, never bent: a refusal states the one number to change. Needs no torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo import env
from octavo.config import (
    MAX_BLOCK_SIZE,
    CacheConfig,
    DeviceConfig,
    LoadConfig,
    LogConfig,
    ModelConfig,
    SchedulerConfig,
    model_folder,
)
from octavo.errors import CapacityError, invalid
from octavo.hf_config import ModelSpec, load_model_spec
from octavo.plan import machine
from octavo.plan.footprint import Footprint, format_bytes, measure_weights
from octavo.plan.groups import GOOD_WASTE
from octavo.plan.target import Target, choose_target

DEFAULT_BLOCK_SIZE = 16
# A large GPU needs more tokens at once to be busy: rows that share the weights' reading, long prompt pieces.
DEFAULT_NUM_SEQS = {"cpu": 256, "cuda": 256, "large cuda": 1024}
DEFAULT_BATCHED_TOKENS = {"cpu": 2048, "cuda": 2048, "large cuda": 8192}
LARGE_GPU_BYTES = 64 << 30
MOST_INVARIANT_ROWS = 4096  # of a step on a GPU: what a plan of its attention holds


@dataclass(frozen=True)
class Reason:
    """Why a field of the Plan has its value."""

    field: str
    value: object
    why: str

    def __str__(self) -> str:
        return f"{self.field}={self.value}: {self.why}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything decided. Nothing that runs reads the six configurations for what stands here."""

    folder: Path
    spec: ModelSpec  # with the resolved dtype and max_model_len
    device: str
    dtype: str
    kv_dtype: str  # what keys and values are kept in: dtype, or fp8
    enforce_eager: bool
    batch_invariant: bool
    num_threads: int
    block_size: int
    num_blocks: int  # the null block included
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    footprint: Footprint
    ledger: tuple[tuple[str, int], ...]  # (what, bytes)
    reasons: tuple[Reason, ...]
    model: ModelConfig
    load: LoadConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    log: LogConfig

    def why(self, field: str) -> str | None:
        """Return the reason for an automatic choice, or None if the field was set by the user."""
        return next((reason.why for reason in self.reasons if reason.field == field), None)

    @property
    def encoder_len(self) -> int:
        """Positions that the encoder yields for one input; 0 without one."""
        return 0 if self.spec.encoder is None else self.spec.encoder.length

    def engine_options(self) -> dict[str, Any]:
        """Return the keyword arguments of `octavo.core.EngineConfig`."""
        from octavo import core  # here, because planning itself needs no extension module

        scheduler = self.scheduler
        return {
            "num_blocks": self.num_blocks,
            "block_size": self.block_size,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "vocab_size": self.spec.vocab_size,
            "enable_prefix_caching": self.cache.enable_prefix_caching,
            # The core refuses it beside an encoder, whose inputs make equal tokens mean different things.
            "sub_block_hits": self.cache.sub_block_hits and self.spec.encoder is None,
            "enable_kv_events": self.cache.kv_events.enabled,
            "enable_chunked_prefill": scheduler.enable_chunked_prefill,
            "long_prefill_token_threshold": scheduler.long_prefill_token_threshold,
            "policy": scheduler.scheduling_policy,
            "priority_aging_ms": scheduler.priority_aging_ms,
            "victim": scheduler.victim,
            "watermark": float(scheduler.watermark),
            "full_prompt_gate": scheduler.full_prompt_gate,
            "max_overtakes": scheduler.max_overtakes,
            "max_draft_tokens": scheduler.speculation.num_tokens,
            "prompt_lookup_min": scheduler.speculation.lookup_min,
            "prompt_lookup_max": scheduler.speculation.lookup_max,
            # What cannot be loaded is computed: no request is to blame for a copy that failed.
            "kv_load_failure_policy": "recompute",
            "snapshot_interval": self.cache.mamba_cache_interval,
            # One input a step: while it is encoded, everybody who only decodes waits.
            "encoder_budget": self.encoder_len,
            "groups": [
                core.CacheGroup(
                    g.kind,
                    block_size=self.block_size,
                    window=g.window,
                    split=g.split,
                    encoder_len=g.encoder_len,
                )
                for g in self.footprint.groups
            ],
        }


def resolve(
    model: ModelConfig,
    load: LoadConfig | None = None,
    cache: CacheConfig | None = None,
    scheduler: SchedulerConfig | None = None,
    device: DeviceConfig | None = None,
    log: LogConfig | None = None,
    *,
    available_memory: int | None = None,
) -> Plan:
    """Decide everything that was left open.

    `available_memory` replaces what this machine has free (a GPU: in all), to plan for another one. Raises
    ModelError for a bad folder, ValueError for options that exclude each other and CapacityError if the
    memory cannot hold the model and one request.
    """
    load, cache, scheduler = load or LoadConfig(), cache or CacheConfig(), scheduler or SchedulerConfig()
    device, log = device or DeviceConfig(), log or LogConfig()
    reasons: list[Reason] = []
    target = choose_target(device, available_memory)
    if target.why is not None:
        reasons.append(Reason("device", target.kind, target.why))
    footprint = footprint_of(
        model, load, cache, scheduler, target=target, graphs=not device.enforce_eager, reasons=reasons
    )
    if device.batch_invariant:
        _check_invariance(footprint, target)
    pool = _Pool(footprint, cache, target, explicit_length=model.max_model_len is not None)
    num_blocks, max_model_len = pool.resolve(reasons)
    _check_host_tier(cache, target, elsewhere=available_memory is not None)
    spec = dataclasses.replace(footprint.spec, max_model_len=max_model_len)
    footprint = dataclasses.replace(footprint, spec=spec)
    _check_chunks(footprint, scheduler)
    return Plan(
        folder=model_folder(model.model),
        spec=spec,
        device=target.kind,
        dtype=spec.dtype,
        kv_dtype=footprint.kv_dtype,
        enforce_eager=device.enforce_eager,
        batch_invariant=device.batch_invariant,
        num_threads=_num_threads(device, reasons),
        block_size=footprint.block_size,
        num_blocks=num_blocks,
        max_model_len=max_model_len,
        max_num_seqs=footprint.max_num_seqs,
        max_num_batched_tokens=footprint.max_num_batched_tokens,
        footprint=footprint,
        ledger=(
            ("weights", footprint.weights_bytes),
            ("KV cache", num_blocks * footprint.block_bytes),
            ("activations", footprint.activation_bytes),
            ("rotary table", footprint.rope_bytes),
            *((("encoder", footprint.encoder_bytes),) if footprint.encoder_bytes else ()),
            *footprint.device_parts,
            *((("host tier", cache.offloading_bytes),) if cache.offloading_bytes else ()),
        ),
        reasons=tuple(reasons),
        model=model,
        load=load,
        cache=cache,
        scheduler=scheduler,
        log=log,
    )


def footprint_of(
    model: ModelConfig,
    load: LoadConfig | None = None,
    cache: CacheConfig | None = None,
    scheduler: SchedulerConfig | None = None,
    *,
    target: Target | None = None,
    graphs: bool = True,
    reasons: list[Reason] | None = None,
) -> Footprint:
    """Return the memory a model takes, whatever there is: the part of resolve() that needs no machine.

    `capacity_table(footprint_of(...), memory, contexts)` is what `octavo plan` prints. `target`: for what
    (None: a CPU); `graphs`: whether steps will be captured there. Appends to `reasons`.
    """
    load, cache, scheduler = load or LoadConfig(), cache or CacheConfig(), scheduler or SchedulerConfig()
    reasons = [] if reasons is None else reasons
    folder = model_folder(model.model)
    assert model.max_model_len is None or isinstance(model.max_model_len, int)  # ModelConfig parsed it
    spec = load_model_spec(folder, max_model_len=model.max_model_len, quantization=model.quantization)
    if spec.max_model_len > spec.context_limit:
        remedy = f"the model was made for {spec.context_limit}, use at most that"
        raise invalid("max_model_len", spec.max_model_len, remedy)
    kind = "cpu" if target is None else target.kind
    spec = dataclasses.replace(spec, dtype=_dtype(model.dtype, spec.dtype, kind, reasons))
    size = "large cuda" if target and kind == "cuda" and target.memory >= LARGE_GPU_BYTES else kind
    num_tokens, num_seqs = _step_limits(scheduler, spec.max_model_len, size, reasons)
    weights_bytes, source = measure_weights(folder, spec, load.load_format)
    kept = f"{source}, in {spec.dtype}"
    if spec.quantization is not None and spec.quantization.scheme is not None:
        kept += f", linear layers in {spec.quantization.scheme}"
    reasons.append(Reason("weights_bytes", weights_bytes, kept))
    footprint = Footprint(
        spec=spec,
        weights_bytes=weights_bytes,
        block_size=cache.block_size or DEFAULT_BLOCK_SIZE,
        max_num_batched_tokens=num_tokens,
        max_num_seqs=num_seqs,
        kv_cache_dtype=cache.kv_cache_dtype,
        device=kind,
        graphs=graphs,
        max_draft_tokens=scheduler.speculation.num_tokens,
    )
    if spec.latent is not None and cache.kv_cache_dtype != "auto":
        remedy = "use auto: latents are kept in the model's dtype"
        raise invalid("kv_cache_dtype", cache.kv_cache_dtype, remedy)
    if footprint.max_draft_tokens and any(group.recurrent for group in footprint.groups):
        remedy = "leave it out: recurrent layers cannot take back a rejected token"
        raise invalid("speculative_config", scheduler.speculative_config, remedy)
    return footprint if cache.block_size else _with_block_size(footprint, reasons)


def _with_block_size(footprint: Footprint, reasons: list[Reason]) -> Footprint:
    """A parent as large as a state holds so many blocks at most: those of few tokens would leave it empty."""
    while max(footprint.cut.waste) > GOOD_WASTE and footprint.block_size < MAX_BLOCK_SIZE:
        larger = dataclasses.replace(footprint, block_size=2 * footprint.block_size)
        if max(larger.cut.waste) >= max(footprint.cut.waste):
            break
        footprint = larger
    why = "the default"
    if footprint.block_size > DEFAULT_BLOCK_SIZE:
        why = (
            f"so that blocks of attention fill the place of a state of {format_bytes(footprint.state_bytes)}"
        )
    reasons.append(Reason("block_size", footprint.block_size, why))
    return footprint


def _dtype(wanted: str, checkpoint: str, kind: str, reasons: list[Reason]) -> str:
    """16 bits halve the bytes that decode streams, but a CPU without units for them is slower than fp32."""
    if wanted != "auto":
        return wanted
    if kind == "cuda":
        dtype = "bfloat16" if checkpoint == "float32" else checkpoint
        why = f"the checkpoint is {checkpoint} and a GPU multiplies 16 bits several times as fast as 32"
    elif checkpoint == "float32":
        dtype, why = checkpoint, "the checkpoint is float32"
    elif checkpoint in machine.fast_formats():
        dtype, why = checkpoint, f"the checkpoint is {checkpoint} and the CPU multiplies it natively"
    else:
        dtype = "float32"
        why = f"the checkpoint is {checkpoint}, which this CPU ({machine.cpu_name()}) has no units for"
    reasons.append(Reason("dtype", dtype, why))
    return dtype


def _step_limits(
    scheduler: SchedulerConfig, max_model_len: int, size: str, reasons: list[Reason]
) -> tuple[int, int]:
    tokens, seqs = scheduler.max_num_batched_tokens, scheduler.max_num_seqs
    if tokens is None:
        tokens, why = DEFAULT_BATCHED_TOKENS[size], "the default; longer prompts are computed in chunks"
        if not scheduler.enable_chunked_prefill and max_model_len > tokens:
            tokens, why = (
                max_model_len,
                "max_model_len, because prompts are not computed in chunks",
            )
        if seqs is not None and seqs > tokens:
            tokens, why = seqs, "max_num_seqs, because every row needs a token of the step"
        reasons.append(Reason("max_num_batched_tokens", tokens, why))
    if seqs is None:
        seqs, why = DEFAULT_NUM_SEQS[size], "the default"
        if seqs > tokens:
            seqs, why = tokens, "max_num_batched_tokens, because every row needs a token of the step"
        reasons.append(Reason("max_num_seqs", seqs, why))
    if seqs > tokens:
        raise invalid("max_num_seqs", seqs, f"use at most max_num_batched_tokens={tokens}, or raise that")
    return tokens, seqs


def _check_invariance(footprint: Footprint, target: Target) -> None:
    """Refuse what has not been made batch-invariant, or not been shown to be."""
    spec = footprint.spec
    parts = {
        "experts": spec.experts,
        "recurrent layers": spec.state,
        "latent attention": spec.latent,
        "an encoder": spec.encoder,
        "quantized layers": spec.quantization,
    }
    found = [name for name, part in parts.items() if part is not None]
    if found:
        remedy = (
            f"{spec.architecture} has {' and '.join(found)}, whose results may depend on the batch: "
            "leave it out, or use a dense model of 16 or 32 bits with grouped-query attention"
        )
        raise invalid("batch_invariant", True, remedy)
    if footprint.kv_dtype != spec.dtype:
        remedy = "with batch_invariant use auto: a cache in fp8 has not been shown to keep the bits"
        raise invalid("kv_cache_dtype", footprint.kv_dtype, remedy)
    if target.kind != "cuda":
        return
    if footprint.max_num_seqs >= MOST_INVARIANT_ROWS:
        remedy = f"with batch_invariant use fewer than {MOST_INVARIANT_ROWS}: more rows have other kernels"
        raise invalid("max_num_seqs", footprint.max_num_seqs, remedy)
    if spec.dtype == "float32":
        remedy = "the product that has it on a GPU takes 16 bits: use dtype='bfloat16', or device='cpu'"
        raise invalid("batch_invariant", True, remedy)


def _check_host_tier(cache: CacheConfig, target: Target, *, elsewhere: bool) -> None:
    """`elsewhere`: the plan is for another machine, of which nobody knows the host memory beside a GPU."""
    if not cache.offloading_bytes or (target.kind != "cpu" and elsewhere):
        return
    memory = target.memory if target.kind == "cpu" else machine.available_memory()
    if cache.offloading_bytes > memory:
        remedy = f"{format_bytes(memory)} of memory are available: give the host tier less"
        raise invalid("kv_offloading_size", cache.kv_offloading_size, remedy)


def _check_chunks(footprint: Footprint, scheduler: SchedulerConfig) -> None:
    tokens, length = footprint.max_num_batched_tokens, footprint.spec.max_model_len
    if not scheduler.enable_chunked_prefill and tokens < length:
        remedy = f"without chunked prefill use at least max_model_len={length}"
        raise invalid("max_num_batched_tokens", tokens, remedy)


def _num_threads(device: DeviceConfig, reasons: list[Reason]) -> int:
    if device.num_threads is not None:
        return device.num_threads
    threads, why = env.num_threads(), f"{env.NUM_THREADS} is set"
    if threads is None:
        threads, why = machine.physical_cores(), "the cores this process may run on"
    reasons.append(Reason("num_threads", threads, why))
    return threads


@dataclass(frozen=True)
class _Pool:
    """How many blocks, and how long a request they allow."""

    footprint: Footprint
    cache: CacheConfig
    target: Target
    explicit_length: bool

    def resolve(self, reasons: list[Reason]) -> tuple[int, int]:
        """Return (num_blocks, max_model_len). Raises CapacityError unless one request of that length fits."""
        footprint, length = self.footprint, self.footprint.spec.max_model_len
        num_blocks = self._num_blocks(reasons)
        usable = num_blocks - 1
        if usable < footprint.blocks_of(length if self.explicit_length else 1):
            raise self._refusal(usable)
        if not self.explicit_length:
            limit = length
            length = min(limit, footprint.longest(usable))
            why = "the longest that the model was made for"
            if length < limit:
                why = f"the pool's {usable} blocks; the model was made for {limit}"
            reasons.append(Reason("max_model_len", length, why))
        return num_blocks, length

    def _num_blocks(self, reasons: list[Reason]) -> int:
        cache, footprint = self.cache, self.footprint
        if cache.num_gpu_blocks_override is not None:
            return cache.num_gpu_blocks_override
        if cache.kv_cache_memory_bytes is not None:
            assert isinstance(cache.kv_cache_memory_bytes, int)  # CacheConfig parsed it
            num_blocks = cache.kv_cache_memory_bytes // footprint.block_bytes
            why = f"kv_cache_memory_bytes / {footprint.block_bytes} bytes a block"
        else:
            num_blocks, why = self._share()
        reasons.append(Reason("num_blocks", num_blocks, why))
        return num_blocks

    def _share(self) -> tuple[int, str]:
        footprint, target = self.footprint, self.target
        budget = target.budget(self.cache.gpu_memory_utilization) - footprint.fixed_bytes
        num_blocks = max(budget, 0) // footprint.block_bytes
        why = f"{self._room()}, less weights and activations ({format_bytes(footprint.fixed_bytes)})"
        # More than every row at full length can never be in use at once.
        most = 1 + footprint.max_num_seqs * footprint.blocks_of(footprint.spec.max_model_len)
        if num_blocks > most:
            num_blocks, why = most, "every row of a step at max_model_len, and the null block"
        return num_blocks, why

    def _room(self) -> str:
        """Where the budget comes from, in words."""
        target, share = self.target, self.target.share(self.cache.gpu_memory_utilization)
        if target.kind == "cpu":
            return f"{share:.0%} of the {format_bytes(target.memory)} available"
        taken = f" less {format_bytes(target.in_use)} in use" if target.in_use else ""
        return f"{share:.0%} of the {format_bytes(target.memory)} of the {target.name}{taken}"

    def _remedy(self, needed: int, holds: int) -> str:
        """What to set, or what is missing: asking for a pool helps only where there is memory for it."""
        footprint, target = self.footprint, self.target
        ways = [f"max_model_len<={holds}"] if holds else []
        pool = needed * footprint.block_bytes
        total, free = footprint.fixed_bytes + pool, target.memory - target.in_use
        if self.cache.num_gpu_blocks_override is not None:
            ways.append(f"num_gpu_blocks_override>={needed}")
        elif self.cache.kv_cache_memory_bytes is not None or total <= free:
            ways.append(f"kv_cache_memory_bytes>={pool} ({format_bytes(pool)})")
        if ways:
            return f"set {' or '.join(ways)}"
        return (
            f"with a pool of {format_bytes(pool)} they need {format_bytes(total)}, and {format_bytes(free)} "
            "are there: use a device with more memory, quantize the weights (quantization='fp8') or lower "
            "max_num_batched_tokens"
        )

    def _refusal(self, usable: int) -> CapacityError:
        footprint, length = self.footprint, self.footprint.spec.max_model_len
        needed = footprint.blocks_of(length if self.explicit_length else 1) + 1
        holds = footprint.longest(max(usable, 0))
        remedy = self._remedy(needed, holds)
        room = ""
        if self.cache.kv_cache_memory_bytes is None and self.cache.num_gpu_blocks_override is None:
            budget = self.target.budget(self.cache.gpu_memory_utilization)
            room = (
                f"; weights and activations take {format_bytes(footprint.fixed_bytes)} of "
                f"{format_bytes(budget)}, which is {self._room()}"
            )
        wanted = f"max_model_len={length}" if self.explicit_length else "any length"
        return CapacityError(
            f"the pool is too small for one request of {wanted}: it holds {holds} tokens "
            f"({max(usable, 0)} blocks of {footprint.block_size}){room}; {remedy}"
        )
