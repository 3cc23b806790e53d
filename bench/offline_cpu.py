"""Octavo beside transformers' `generate` on this CPU: same weights, same threads, interleaved repetitions.

    python bench/offline_cpu.py                              # float32, writes bench/results/
    python bench/offline_cpu.py --dtype bfloat16 --repeats 5

The model is a Llama of about 100 million parameters with random weights, made in a temporary folder. The
peer runs as one would run it for speed: one left-padded batch, SDPA attention, inference mode, its default
cache, no end token. Only tokens that were asked for count: a padded batch runs until its longest output is
done. The prefix cache is emptied before every repetition, so that hits are hits within the job. Exit code 1
if a target is missed, or if outputs differ where float32 makes them comparable.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import transformers
import workloads
from workloads import Job

from octavo import LLM, SamplingParams
from octavo.cli.collect_env import collect

RESULTS = Path(__file__).resolve().parent / "results"
# The job, and how many times the peer's speed Octavo must reach on it.
SCENARIOS: tuple[tuple[Callable[..., Job], float], ...] = (
    (workloads.mixed, 3.0),
    (workloads.single, 1.0),
    (workloads.shared_prefix, 5.0),
)
# Two candidates this close may change places with the order of a float32 sum; outputs then differ rightly.
TIE = 1e-3
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Outputs = list[list[int]]


def main() -> int:
    """Measures every scenario, prints a table and writes the result."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        peer = Peer(folder, args.dtype)
        llm = LLM(
            folder,
            dtype=args.dtype,
            num_threads=args.threads,
            skip_tokenizer_init=True,
            max_model_len=1024,
            kv_cache_memory_bytes="2GiB",
        )
        scenarios = [measure(args, llm, peer, make_job, target) for make_job, target in SCENARIOS]
    result = describe(args, peer) | {"scenarios": scenarios}
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(scenario["met"] and not scenario["unexplained"] for scenario in scenarios) else 1


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--scale", type=float, default=1.0, help="shorten prompts and outputs, to try the script"
    )
    parser.add_argument(
        "--output", help="JSON file (default: bench/results/offline_cpu-DTYPE.json at full scale)"
    )
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: processor time of one thread, which other work on the machine disturbs less",
    )
    args = parser.parse_args()
    if args.clock == "cpu":
        args.threads = 1  # workers that wait for each other burn processor time too
    if args.output is None and args.scale == 1.0:
        suffix = "" if args.clock == "wall" else "-cpu-time"
        args.output = str(RESULTS / f"offline_cpu-{args.dtype}{suffix}.json")
    return args


def make_model(folder: Path) -> None:
    """A Llama with grouped-query attention and a tied head, about 100 million parameters."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        vocab_size=32000,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.05,  # wider than in training, so that logits are apart
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


class Peer:
    """transformers' `generate` on a padded batch."""

    def __init__(self, folder: str, dtype: str) -> None:
        self.model: Any = transformers.LlamaForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).eval()
        self.model.generation_config.eos_token_id = None  # every output runs to its length
        self.model.generation_config.pad_token_id = 0

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, the tied head once."""
        return int(self.model.num_parameters())

    def run(self, job: Job) -> Outputs:
        """Every prompt padded on the left to the longest, every row run to the longest output."""
        width = max(map(len, job.prompts))
        ids = torch.zeros(len(job.prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(job.prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        with torch.inference_mode():
            made = self.model.generate(
                ids, attention_mask=mask, max_new_tokens=max(job.output_lens), do_sample=False, use_cache=True
            )
        rows = made[:, width:].tolist()
        return [row[:length] for row, length in zip(rows, job.output_lens)]

    def gap(self, tokens: list[int], one: int, other: int) -> float:
        """How far apart two candidates for the next token are, in logits."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([tokens])).logits[0, -1].float()
        return float(abs(logits[one] - logits[other]))


def run_octavo(llm: LLM, job: Job) -> Outputs:
    """All requests at once through continuous batching, no cached prefix from before."""
    params = [
        SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False)
        for length in job.output_lens
    ]
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in job.prompts], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def measure(
    args: argparse.Namespace, llm: LLM, peer: Peer, make_job: Callable[..., Job], target: float
) -> dict[str, Any]:
    """One scenario: both engines in turn, medians, and whether their tokens agree."""
    job = make_job(peer.model.config.vocab_size, scale=args.scale)
    warm = make_job(peer.model.config.vocab_size, scale=0.05)
    ours: list[float] = []
    theirs: list[float] = []
    run_octavo(llm, warm), peer.run(warm)
    for _ in range(args.repeats):
        llm.reset_prefix_cache()
        seconds, own = timed(lambda: run_octavo(llm, job), args.clock)
        ours.append(seconds)
        seconds, other = timed(lambda: peer.run(job), args.clock)
        theirs.append(seconds)
    ratio = statistics.median(theirs) / statistics.median(ours)
    same = sum(a == b for a, b in zip(own, other))
    unexplained = count_unexplained(peer, job, own, other) if args.dtype == "float32" else 0
    scenario = {
        "name": job.name,
        "requests": len(job.prompts),
        "prompt_tokens": job.prompt_tokens,
        "output_tokens": job.output_tokens,
        "octavo_seconds": ours,
        "transformers_seconds": theirs,
        "octavo_output_tokens_per_second": job.output_tokens / statistics.median(ours),
        "transformers_output_tokens_per_second": job.output_tokens / statistics.median(theirs),
        "ratio": ratio,
        "target": target,
        "met": ratio >= target,
        "equal_outputs": same,
        "unexplained": unexplained,
    }
    print(
        f"{job.name:28} octavo {scenario['octavo_output_tokens_per_second']:8.1f} tok/s   "
        f"transformers {scenario['transformers_output_tokens_per_second']:8.1f} tok/s   "
        f"{ratio:5.2f}x (target {target:g}x)   equal outputs {same} of {len(own)}, unexplained {unexplained}",
        flush=True,
    )
    return scenario


def timed(job: Callable[[], Outputs], clock: str) -> tuple[float, Outputs]:
    """Seconds of the clock, and the outputs."""
    start = CLOCKS[clock]()
    outputs = job()
    return CLOCKS[clock]() - start, outputs


def count_unexplained(peer: Peer, job: Job, own: Outputs, other: Outputs) -> int:
    """Outputs that part where the two candidates were not a near tie by the peer's own logits."""
    count = 0
    for prompt, a, b in zip(job.prompts, own, other):
        at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
        if len(a) != len(b) or (at is not None and peer.gap(prompt + a[:at], a[at], b[at]) > TIE):
            count += 1
    return count


def describe(args: argparse.Namespace, peer: Peer) -> dict[str, Any]:
    """What was measured, on what, when and how; nothing that names the machine."""
    report = collect()
    kept = ("octavo", "python", "system", "torch", "transformers", "numpy")
    return {
        "benchmark": "offline_cpu",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "bench/offline_cpu.py", *sys.argv[1:]]),
        "versions": {name: report["versions"][name] for name in kept},
        "cpu": report["cpu"],
        "memory_bytes": report["memory"]["total"],
        "load_average_before": LOAD_BEFORE,
        "threads": args.threads,
        "clock": args.clock,
        "dtype": args.dtype,
        "parameters": peer.num_parameters,
        "repeats": args.repeats,
    }


# Other work on the machine shows here; a result with a load near the number of cores says little.
LOAD_BEFORE = os.getloadavg()[0]

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    raise SystemExit(main())
