"""`octavo plan`: whether a model fits a memory, from config.json and the safetensors headers alone."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from typing import Any

from octavo import config
from octavo.cli.console import GIB, gib, note, print_facts, print_table
from octavo.cli.engine import add_model, engine_options, usage_errors
from octavo.cli.errors import EXIT_FAILURE, EXIT_OK, UsageError
from octavo.cli.options import add_options, given, parse_counts, typed
from octavo.hf_config import EncoderSpec, ModelSpec, load_model_spec
from octavo.plan.footprint import Footprint, format_bytes
from octavo.plan.groups import LayerGroup
from octavo.plan.resolver import Reason, footprint_of
from octavo.plan.target import DEFAULT_SHARES, Target, choose_target

DESCRIPTION = """\
Say whether a model fits: the memory of weights, activations and KV cache, and how many requests of which
length run at once. Reads config.json and the safetensors headers only. Exit code 0: it fits, 1: it does not.

  octavo plan ./model
  octavo plan ./model --memory 80GiB --context 8K,32K --batch 1,16,64
  octavo plan ./model --device cuda --memory 24GiB"""

ENGINE_FLAGS = frozenset(
    "dtype quantization load_format block_size kv_cache_dtype max_num_seqs max_num_batched_tokens device "
    "enforce_eager gpu_memory_utilization".split()
)
SHORT_PROMPT = 12  # tokens
USUAL_CONTEXTS = (2048, 8192, 32768, 131072)
USUAL_BATCHES = (1, 8, 64)  # a table of 80 columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `octavo plan`."""
    add_model(parser)
    parser.add_argument(
        "--memory",
        type=typed(lambda text: config.parse_size(text, "memory"), "a size"),
        metavar="SIZE",
        help=f"fit into it, such as 80GiB (default: {DEFAULT_SHARES['cpu']:.0%}% of what this machine has "
        f"free, or {DEFAULT_SHARES['cuda']:.0%}% of its GPU)",
    )
    counts = typed(parse_counts, "a list of counts")
    parser.add_argument(
        "--context", type=counts, metavar="N,N,...", help="lengths, such as 8K,32K (default: the model's)"
    )
    parser.add_argument("--batch", type=counts, metavar="N,N,...", help="requests at once (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_options(parser.add_argument_group("engine"), chosen_options())


def chosen_options() -> list[Any]:
    """The engine's options that change what memory is needed."""
    return [option for option in engine_options() if option.name in ENGINE_FLAGS]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A footprint against a memory; `context` and `batch` are what must fit."""

    footprint: Footprint
    memory: int
    context: int
    batch: int

    @property
    def free_blocks(self) -> int:
        """Blocks that requests can use: what is left of the memory, less the null block."""
        return max((self.memory - self.footprint.fixed_bytes) // self.footprint.block_bytes - 1, 0)

    def kv_bytes(self, context: int, batch: int) -> int:
        """The KV pool for `batch` requests of `context` tokens."""
        return (self.footprint.blocks_for(context, batch) + 1) * self.footprint.block_bytes

    def held(self, group: LayerGroup) -> int:
        """What one request of the context keeps in a group."""
        chunk = self.footprint.max_num_batched_tokens
        peak = group.peak(self.context, self.footprint.block_size, chunk)
        return peak * self.footprint.block_bytes // group.split

    @property
    def input_bytes(self) -> int:
        """What one input of an encoder keeps; 0 without one."""
        return sum(self.held(group) for group in self.footprint.groups if group.encoder_len)

    def needed(self, context: int, batch: int) -> int:
        """Everything at once."""
        return self.footprint.fixed_bytes + self.kv_bytes(context, batch)

    def most(self, context: int) -> int:
        """How many requests of `context` tokens fit."""
        return self.footprint.most(context, self.free_blocks)

    @property
    def fits(self) -> bool:
        """Whether what must fit does."""
        return self.needed(self.context, self.batch) <= self.memory

    def remedy(self) -> str:
        """The one number to change: the smallest change first."""
        if self.most(self.context):
            return f"--batch {self.most(self.context)}"
        if longest := self.footprint.longest(self.free_blocks):
            return f"--context {longest}"
        # Rounded up, so that the number given back fits.
        return f"--memory {math.ceil(self.needed(self.context, self.batch) / GIB * 100) / 100:g}GiB"


def run(args: argparse.Namespace) -> int:
    """Prints the ledger, the table and the verdict."""
    with usage_errors():
        configs = config.from_options({"model": args.model, **given(args, chosen_options())})
    folder = config.model_folder(args.model)
    with usage_errors():
        target = choose_target(configs.device, args.memory)
    if args.memory is not None and target.kind == "cpu" and configs.model.dtype == "auto":
        # `auto` asks what this CPU multiplies fast; a memory given is some other machine's.
        dtype = load_model_spec(folder).dtype
        configs = configs._replace(model=dataclasses.replace(configs.model, dtype=dtype))
    reasons: list[Reason] = []
    footprint = footprint_of(
        configs.model,
        configs.load,
        configs.cache,
        configs.scheduler,
        target=target,
        graphs=not configs.device.enforce_eager,
        reasons=reasons,
    )
    limit = footprint.spec.context_limit
    contexts = args.context or sorted({length for length in (*USUAL_CONTEXTS, limit) if length <= limit})
    batches = args.batch or list(USUAL_BATCHES)
    check(contexts, batches, limit)
    fit = Fit(
        footprint=footprint,
        memory=room(target, args.memory, configs.cache.gpu_memory_utilization),
        context=max(contexts),
        batch=max(args.batch or [1]),
    )
    if args.json:
        print(json.dumps(as_json(fit, contexts, batches), indent=2))
    else:
        show(fit, contexts, batches)
        if args.verbose:
            for reason in reasons:
                note(str(reason))
    return EXIT_OK if fit.fits else EXIT_FAILURE


def room(target: Target, given_memory: int | None, share: float | None) -> int:
    """The bytes to fit into: those given, unless a share was asked for, or the device's usual share."""
    if given_memory is not None and share is None:
        return max(given_memory - target.in_use, 0)
    return target.budget(share)


def check(contexts: list[int], batches: list[int], limit: int) -> None:
    """Raises UsageError for a length or a batch that no run could have."""
    if min(batches) < 1:
        raise UsageError(f"--batch has {min(batches)}; use 1 or more")
    if min(contexts) < 1:
        raise UsageError(f"--context has {min(contexts)}; use 1 or more")
    if max(contexts) > limit:
        raise UsageError(f"--context has {max(contexts)}; the model was made for {limit}, use at most that")


def show(fit: Fit, contexts: list[int], batches: list[int]) -> None:
    """The plan for people."""
    spec, footprint = fit.footprint.spec, fit.footprint
    cached = f"{spec.num_kv_heads} KV heads of {spec.head_dim}"
    if spec.latent is not None:
        cached = f"latents of {spec.latent.rank} + {spec.latent.rope_dim} for all of them"
    print_facts(
        spec.architecture,
        {
            "shape": f"{spec.num_layers} layers, hidden {spec.hidden_size}, {spec.num_heads} heads, {cached}",
            **({} if spec.encoder is None else {"encoder": spoken(spec.encoder)}),
            "dtype": f"{spec.dtype}, {linears(spec)}KV cache {footprint.kv_dtype}",
            "context": f"{spec.context_limit:,} tokens",
        },
    )
    sizes = {name: gib(size) for name, size in ledger(fit)}
    limits = f"{footprint.max_num_batched_tokens} tokens and {footprint.max_num_seqs} rows a step"
    sizes["activations"] += f", the most that {limits} take"
    print_facts("Memory", sizes)
    if len(footprint.groups) > 1 or spec.latent is not None:
        print_facts("Blocks", blocks(fit))
    header = ["context", "KV each", "at most", *(f"batch {batch}" for batch in batches)]
    rows = []
    for context in contexts:
        cells = [cell(fit, context, batch) for batch in batches]
        rows.append([f"{context:,}", gib(footprint.request_bytes(context)), f"{fit.most(context):,}", *cells])
    print_table(f"\nAll memory by context and batch, of {gib(fit.memory)}", header, rows)
    what = f"{fit.batch} x {fit.context:,} tokens"
    needed = gib(fit.needed(fit.context, fit.batch))
    if fit.fits:
        print(f"fits: {what} needs {needed} of {gib(fit.memory)}")
    else:
        print(f"does not fit: {what} needs {needed}, there is {gib(fit.memory)}; {fit.remedy()} fits")


def spoken(encoder: EncoderSpec) -> str:
    """What an encoder takes and yields."""
    return (
        f"{encoder.num_layers} layers, {encoder.num_heads} heads, {encoder.mel_bins} x {encoder.frames:,} "
        f"features of {encoder.modality} to {encoder.length:,} positions"
    )


def linears(spec: ModelSpec) -> str:
    """What linear layers are held in, where that is not the model's dtype."""
    scheme = None if spec.quantization is None else spec.quantization.scheme
    return "" if scheme is None else f"linear layers {scheme}, "


def blocks(fit: Fit) -> dict[str, str]:
    """The blocks of each group, what of them holds nothing, and what a request of the context keeps."""
    facts = {}
    footprint = fit.footprint
    for group, size, waste in zip(footprint.groups, footprint.cut.block_bytes, footprint.cut.waste):
        unit = "encoder positions" if group.encoder_len else "tokens"
        span = "one state" if group.recurrent else f"{footprint.block_size} {unit}"
        name = group.kind.replace("_", " ") + (f" {group.window:,}" if group.window else "")
        facts[name] = (
            f"{span} of {len(group.layers)} layers, {format_bytes(size)}; "
            f"{group.split} in a block of the pool, {waste:.1%} unused; "
            f"{kept(fit, group)} keep {gib(fit.held(group))}"
        )
    taken = footprint.request_bytes(SHORT_PROMPT)
    used = SHORT_PROMPT * footprint.token_bytes + footprint.state_bytes + encoded(fit)
    facts["short prompt"] = f"{SHORT_PROMPT} tokens take {format_bytes(taken)}, {1 - used / taken:.1%} unused"
    return facts


def encoded(fit: Fit) -> int:
    """Keys and values of one encoder input without what its last block leaves empty."""
    footprint = fit.footprint
    length = footprint.spec.encoder.length if footprint.spec.encoder is not None else 0
    return length * len(footprint.spec.cross_layers) * footprint.token_layer_bytes


def kept(fit: Fit, group: LayerGroup) -> str:
    """What of a request a group keeps blocks for."""
    if group.encoder_len:
        return f"the {group.encoder_len:,} positions of one input"
    return f"{fit.context:,} tokens"


def cell(fit: Fit, context: int, batch: int) -> str:
    """The memory of one run; in brackets where it does not fit, which needs no colour."""
    needed = fit.needed(context, batch)
    return gib(needed) if needed <= fit.memory else f"[{gib(needed)}]"


def ledger(fit: Fit) -> list[tuple[str, int]]:
    """What the memory is for, in the run that must fit."""
    footprint = fit.footprint
    return [
        ("weights", footprint.weights_bytes),
        ("activations", footprint.activation_bytes),
        ("rotary table", footprint.rope_bytes),
        *([("encoder", footprint.encoder_bytes)] if footprint.encoder_bytes else []),
        *footprint.device_parts,
        ("KV cache", fit.kv_bytes(fit.context, fit.batch)),
        ("KV a token", footprint.token_bytes),
        *([("one state", footprint.state_bytes)] if footprint.state_bytes else []),
        *([("one input", fit.input_bytes)] if fit.input_bytes else []),
        ("needed", fit.needed(fit.context, fit.batch)),
        ("given", fit.memory),
    ]


def as_json(fit: Fit, contexts: list[int], batches: list[int]) -> dict[str, Any]:
    """The plan for programs; sizes in bytes."""
    cut = fit.footprint.cut
    return {
        "architecture": fit.footprint.spec.architecture,
        "dtype": fit.footprint.spec.dtype,
        "kv_cache_dtype": fit.footprint.kv_dtype,
        "quantization": quantization.method if (quantization := fit.footprint.spec.quantization) else None,
        "context": fit.context,
        "batch": fit.batch,
        "fits": fit.fits,
        "remedy": None if fit.fits else fit.remedy(),
        "bytes": {name.replace(" ", "_"): size for name, size in ledger(fit)},
        "table": [
            {
                "context": context,
                "most_requests": fit.most(context),
                "bytes": {str(batch): fit.needed(context, batch) for batch in batches},
            }
            for context in contexts
        ],
        "groups": [
            {
                "kind": group.kind,
                "layers": len(group.layers),
                "window": group.window,
                "encoder_len": group.encoder_len,
                "bytes_held": fit.held(group),
                "block_bytes": size,
                "split": group.split,
                "waste": round(waste, 4),
            }
            for group, size, waste in zip(fit.footprint.groups, cut.block_bytes, cut.waste)
        ],
    }
