"""From nothing to the first token of a checkpoint of real size, by phases; what is read is in the page cache.

    python bench/load.py --model Qwen3-0.6B
    python bench/load.py --model Llama-3.1-8B --parent /dev/shm --output load.json

Writes the model's published shapes with random numbers as safetensors, in files of 5 GB as hubs do, then
starts an engine on them in a process of its own. The folder is removed in the end. It lies in --parent, which
needs room for the weights; a file system in memory leaves the disk out, as a warm page cache does.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from model_folders import CONFIGS, model_folder

START = time.perf_counter()
SHARD_BYTES = 5_000_000_000
NOISE = 1 << 24  # numbers that are drawn once and repeated
PHASES = {  # functions that octavo.engine.llm calls, in its order
    "resolve": "plan",
    "load_tokenizer": "tokenizer",
    "load_weights": "weights",
    "DeviceRunner": "pool and buffers",
}
Shape = tuple[int, ...]


def main() -> int:
    """Writes a checkpoint, starts an engine on it as often as asked for, and prints the phases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="Qwen3-0.6B", choices=CONFIGS)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--parent", help="folder to write in; default: that of temporary files")
    parser.add_argument("--repeats", type=int, default=2, help="starts; the fastest counts")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # how this program calls itself
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(start(args.folder, args.device)))
        return 0
    with tempfile.TemporaryDirectory(dir=args.parent) as parent:
        folder = model_folder(args.model, Path(parent))
        before = time.perf_counter()
        nbytes = write_checkpoint(folder, CONFIGS[args.model])
        print(f"{args.model}: {nbytes / 1e9:.2f} GB written in {time.perf_counter() - before:.1f} s")
        again = [sys.executable, str(Path(__file__).resolve()), "--folder", str(folder)]
        starts = []
        for _ in range(args.repeats):
            command = [*again, "--device", args.device]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            starts.append(json.loads(done.stdout.splitlines()[-1]))
            print_phases(starts[-1], nbytes)
    best = min(starts, key=lambda phases: phases["first token"])
    result = {
        "benchmark": "load",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "bench/load.py", *sys.argv[1:]]),
        "model": args.model,
        "bytes": nbytes,
        "weights_gbytes_s": round(nbytes / 1e9 / best["seconds"]["weights"], 2),
        **best,
    }
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n")
    return 0


def print_phases(found: dict[str, Any], nbytes: int) -> None:
    """One line: seconds of each phase, and until the first token."""
    parts = [f"{name} {seconds:.2f}" for name, seconds in found["seconds"].items()]
    speed = nbytes / 1e9 / found["seconds"]["weights"]
    print(f"first token after {found['first token']:.2f} s: {', '.join(parts)} s; weights {speed:.1f} GB/s")


def start(folder: str, device: str) -> dict[str, Any]:
    """Makes an engine in this process and has it give a token; seconds of each phase, and of all."""
    import torch

    from octavo import LLM, SamplingParams
    from octavo.engine import llm as stages
    from octavo.version import __version__

    seconds = {"imports": time.perf_counter() - START}
    calls = {name: timed(getattr(stages, name), phase, seconds) for name, phase in PHASES.items()}
    before = time.perf_counter()
    if device == "cuda":
        torch.zeros(1, device=device)
    seconds["device"] = time.perf_counter() - before
    before = time.perf_counter()
    with patch.multiple(stages, **calls):
        llm = LLM(folder, device=device, max_model_len=4096, dtype="bfloat16")
    made = time.perf_counter()
    llm.generate([list(range(1000, 1128))], SamplingParams(max_tokens=1, ignore_eos=True), use_tqdm=False)
    seconds["first step"] = time.perf_counter() - made
    known = sum(seconds[phase] for phase in PHASES.values() if phase in seconds)
    seconds["rest"] = made - before - known
    return {
        "octavo": __version__,
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "first token": round(time.perf_counter() - START, 3),
    }


def timed(function: Callable[..., Any], phase: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """The function, whose seconds are noted under a name."""

    def call(*args: Any, **options: Any) -> Any:
        before = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            seconds[phase] = time.perf_counter() - before

    return call


def write_checkpoint(folder: Path, config: dict[str, Any], shard_bytes: int = SHARD_BYTES) -> int:
    """Writes every tensor of a config as bfloat16 in files of up to shard_bytes, and their index; returns the
    bytes of all tensors."""
    import torch

    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    ones = torch.ones(1 << 14, dtype=torch.bfloat16)
    contents = {2: noise.view(torch.uint8).numpy().data, 1: ones.view(torch.uint8).numpy().data}
    files = shards(config, shard_bytes)
    index: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        index |= dict.fromkeys(tensors, name)
        header, end = {}, 0
        for tensor, shape in tensors.items():
            begin, end = end, end + 2 * math.prod(shape)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for shape in tensors.values():
                left = 2 * math.prod(shape)
                while left > 0:
                    left -= file.write(contents[len(shape)][:left])
        total += end
    weights = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weights))
    return total


def shards(config: dict[str, Any], shard_bytes: int) -> list[dict[str, Shape]]:
    """The tensors of a config, in order, cut into files of up to shard_bytes."""
    files: list[dict[str, Shape]] = [{}]
    room = shard_bytes
    for name, shape in tensors_of(config):
        nbytes = 2 * math.prod(shape)
        if nbytes > room and files[-1]:
            files.append({})
            room = shard_bytes
        files[-1][name] = shape
        room -= nbytes
    return files


def tensors_of(config: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of a Llama's or a Qwen3's tensors."""
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    vocab = config["vocab_size"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        parts: dict[str, Shape] = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        if config["model_type"] == "qwen3":
            parts |= {"self_attn.q_norm": (dim,), "self_attn.k_norm": (dim,)}
        for name, shape in parts.items():
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


if __name__ == "__main__":
    raise SystemExit(main())
