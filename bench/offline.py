"""Whole jobs on one GPU: Octavo, vLLM or transformers, one engine start for a list of workloads.

    python bench/offline.py --model Qwen3-0.6B --workload nano,sharegpt,prefix,decode1
    python bench/offline.py --engine vllm --model Qwen3-0.6B --workload nano,sharegpt,prefix,decode1
    python bench/offline.py --model ./folder-with-weights --workload sharegpt --output result.json

A name of model_folders.py is measured with random weights. What is not given is at the engine's own default.
Two engines are comparable when they ran one after the other on the same machine: quote ratios, not times.
Reported besides: seconds until the engine is made, and until it has given its first token. --kernels runs
each workload once more and prints what the device did, kernel by kernel; that run is slower and not counted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent))

import workloads
from model_folders import CONFIGS, model_folder
from workloads import GPU_JOBS, Job

START = time.perf_counter()


class Engine(Protocol):
    """What a peer has to do here."""

    def generate(self, job: Job) -> list[int]:
        """Runs a job; how many tokens each output has."""

    def reset(self) -> None:
        """Forgets cached prefixes."""

    def describe(self) -> dict[str, Any]:
        """Version and limits."""


class OctavoEngine:
    def __init__(self, folder: Path, args: argparse.Namespace, extra: dict[str, Any]) -> None:
        import octavo

        self._octavo = octavo
        self._llm = octavo.LLM(folder, **engine_options(args), enforce_eager=args.enforce_eager, **extra)

    def generate(self, job: Job) -> list[int]:
        params = [
            self._octavo.SamplingParams(temperature=job.temperature, max_tokens=length, ignore_eos=True)
            for length in job.output_lens
        ]
        prompts: list[Any] = [{"prompt_token_ids": prompt} for prompt in job.prompts]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        failed = {o.outputs[0].stop_reason for o in outputs if o.outputs[0].finish_reason == "error"}
        if failed:
            raise RuntimeError(f"requests failed: {failed}")
        return [len(output.outputs[0].token_ids) for output in outputs]

    def reset(self) -> None:
        self._llm.reset_prefix_cache()

    def describe(self) -> dict[str, Any]:
        plan = self._llm.llm_engine.plan
        return {
            "version": self._octavo.__version__,
            "device": plan.device,
            "max_num_seqs": plan.max_num_seqs,
            "max_num_batched_tokens": plan.max_num_batched_tokens,
            "num_blocks": plan.num_blocks,
        }


class VllmEngine:
    def __init__(self, folder: Path, args: argparse.Namespace, extra: dict[str, Any]) -> None:
        import vllm

        self._vllm = vllm
        options = engine_options(args)
        self._llm = vllm.LLM(model=str(folder), enforce_eager=args.enforce_eager, **options, **extra)

    def generate(self, job: Job) -> list[int]:
        params = [
            self._vllm.SamplingParams(temperature=job.temperature, max_tokens=length, ignore_eos=True)
            for length in job.output_lens
        ]
        prompts = [{"prompt_token_ids": prompt} for prompt in job.prompts]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]

    def reset(self) -> None:
        self._llm.reset_prefix_cache()

    def describe(self) -> dict[str, Any]:
        config = self._llm.llm_engine.vllm_config
        return {
            "version": self._vllm.__version__,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "num_blocks": config.cache_config.num_gpu_blocks,
        }


class TransformersEngine:
    """`generate` on padded batches of 64, longest first, as one would run it for speed."""

    BATCH = 64

    def __init__(self, folder: Path, args: argparse.Namespace, extra: dict[str, Any]) -> None:
        import torch
        import transformers

        self._torch, self._transformers = torch, transformers
        config = transformers.AutoConfig.from_pretrained(folder)
        with torch.device("cuda"):
            make = transformers.AutoModelForCausalLM.from_config
            self._model = make(config, dtype=torch.bfloat16, **extra).eval()
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    def generate(self, job: Job) -> list[int]:
        order = sorted(range(len(job.prompts)), key=lambda i: -job.output_lens[i])
        for first in range(0, len(order), self.BATCH):
            self._batch(job, order[first : first + self.BATCH])
        return list(job.output_lens)

    def _batch(self, job: Job, rows: list[int]) -> None:
        torch, width = self._torch, max(len(job.prompts[i]) for i in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(rows):
            ids[row, width - len(job.prompts[i]) :] = torch.tensor(job.prompts[i])
            mask[row, width - len(job.prompts[i]) :] = 1
        sampling = {"do_sample": job.temperature > 0}
        if job.temperature > 0:
            sampling["temperature"] = job.temperature
        longest = max(job.output_lens[i] for i in rows)
        with torch.inference_mode():
            self._model.generate(
                ids.cuda(),
                attention_mask=mask.cuda(),
                max_new_tokens=longest,
                min_new_tokens=longest,
                **sampling,
            ).cpu()

    def reset(self) -> None:
        pass  # nothing is kept from one call to the next

    def describe(self) -> dict[str, Any]:
        return {"version": self._transformers.__version__, "batch": self.BATCH}


ENGINES: dict[str, Any] = {"octavo": OctavoEngine, "vllm": VllmEngine, "transformers": TransformersEngine}


def main() -> int:
    """Measures every workload, prints a table and writes the result."""
    args = parse_arguments()
    jobs = [GPU_JOBS[name]() for name in args.workload]
    if not args.max_model_len:
        args.max_model_len = -(-max(job.longest for job in jobs) // 4096) * 4096
    with tempfile.TemporaryDirectory() as parent:
        folder = model_folder(args.model, Path(parent))
        before = time.perf_counter()
        engine: Engine = ENGINES[args.engine](folder, args, json.loads(args.extra))
        made = time.perf_counter()
        first = workloads.decode1()
        engine.generate(Job("first", first.prompts, [1]))
        start = {
            "imports_s": before - START,
            "made_s": made - before,
            "first_token_s": time.perf_counter() - before,
        }
        result = describe(args, engine) | {"start": start, "workloads": measure(engine, jobs, args)}
    print(json.dumps({"start": start, "engine": result["engine"]}))
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n")
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=ENGINES, default="octavo")
    parser.add_argument("--model", default="Qwen3-0.6B", help=f"a folder, or one of {', '.join(CONFIGS)}")
    parser.add_argument("--workload", type=names, default=["nano"], help=f"of {', '.join(GPU_JOBS)}")
    parser.add_argument("--repeats", type=int, default=1, help="of each workload; the median counts")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.85)
    parser.add_argument("--max-model-len", type=int, help="default: the longest request, in units of 4096")
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--kernels", action="store_true", help="print the device's time by kernel")
    parser.add_argument("--extra", default="{}", help="further options of the engine, as JSON")
    parser.add_argument("--output", help="JSON file to write")
    return parser.parse_args()


def names(text: str) -> list[str]:
    """Workloads of a comma list."""
    wanted = text.split(",")
    for name in wanted:
        if name not in GPU_JOBS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(GPU_JOBS)}")
    return wanted


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options that Octavo and vLLM spell alike."""
    return {
        "load_format": "dummy" if args.model in CONFIGS else "auto",
        "dtype": "bfloat16",
        "max_model_len": args.max_model_len,
        "gpu_memory_utilization": args.gpu_memory_utilization,
    }


def measure(engine: Engine, jobs: list[Job], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Each job's seconds, its cached prefixes forgotten before every repetition."""
    warm = workloads.warm_up()
    for temperature in (0.0, 0.6):
        engine.generate(Job("warm-up", warm.prompts, warm.output_lens, temperature))
    memory = DeviceMemory()
    memory.start()
    rows = []
    for job in jobs:
        walls = []
        for _ in range(args.repeats):
            engine.reset()
            start = time.perf_counter()
            lengths = engine.generate(job)
            walls.append(time.perf_counter() - start)
            assert lengths == job.output_lens, f"{job.name}: outputs differ in length from what was asked"
        wall = statistics.median(walls)
        row = {
            "workload": job.name,
            "requests": len(job.prompts),
            "prompt_tokens": job.prompt_tokens,
            "output_tokens": job.output_tokens,
            "temperature": job.temperature,
            "wall_s": round(wall, 4),
            "walls_s": [round(seconds, 4) for seconds in walls],
            "output_tokens_per_second": round(job.output_tokens / wall, 1),
            "ms_per_token": round(1e3 * wall / job.output_tokens, 4),
            "peak_device_mib": memory.peak,
        }
        rows.append(row)
        print(
            f"{args.engine:12} {args.model:14} {job.name:15} {wall:8.3f} s "
            f"{row['output_tokens_per_second']:10.1f} tok/s {row['ms_per_token']:8.3f} ms/token",
            flush=True,
        )
        if args.kernels:
            row["kernels"] = traced(engine, job)
    return rows


def traced(engine: Engine, job: Job) -> list[dict[str, Any]]:
    """Run a job once more under the profiler; print and return what each kernel took."""
    import torch
    from device_trace import as_json, spans_of, table
    from torch.profiler import ProfilerActivity, profile

    engine.reset()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as trace:
        engine.generate(job)
        torch.cuda.synchronize()
    spans = spans_of(trace)
    print(table(spans), flush=True)
    return as_json(spans)


class DeviceMemory(threading.Thread):
    """The most device memory in use, by all processes, seen every 50 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        try:
            import pynvml
        except ImportError:
            return
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        while True:
            self.peak = max(self.peak, pynvml.nvmlDeviceGetMemoryInfo(device).used >> 20)
            time.sleep(0.05)


def describe(args: argparse.Namespace, engine: Engine) -> dict[str, Any]:
    """What was measured, on what, when and how; nothing that names the machine."""
    import torch

    return {
        "benchmark": "offline",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "bench/offline.py", *sys.argv[1:]]),
        "engine": {"name": args.engine, **engine.describe()},
        "model": Path(args.model).name,
        "max_model_len": args.max_model_len,
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "repeats": args.repeats,
    }


if __name__ == "__main__":
    raise SystemExit(main())
