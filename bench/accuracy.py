"""How far the logits of a real-size model are from exact, ours beside transformers', token by token.

    python bench/accuracy.py --model Qwen3-0.6B                       # on a GPU, random weights
    python bench/accuracy.py --model ./folder-with-weights --output accuracy.json
    python bench/accuracy.py --model Qwen3-0.6B --device cpu --prompts 1 --length 64

transformers computes every prompt in float32 and in bfloat16 from one set of weights, Octavo in bfloat16:
once as it likes, with prompts in large pieces, and once a token a step, which takes the kernels of
decoding. An error is the L2 distance of a token's logits to those of float32, as a part of their spread.
Both engines round to bfloat16 all the way, so neither is right; ours should be no further off. Exits with 1
if it is.

Also printed: seconds in which Octavo loaded the weights from safetensors.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
import transformers
from model_folders import CONFIGS, model_folder

from octavo import LLM, SamplingParams
from octavo.version import __version__

MOST = 1.10  # our median error over transformers'
DECODED = 64  # tokens of a prompt that are fed one by one


def main() -> int:
    """Compares, prints a table and writes the result."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as parent:
        folder = model_folder(args.model, Path(parent))
        model = load(folder, args)
        if args.model in CONFIGS:
            model.save_pretrained(folder)
        vocab = model.config.get_text_config().vocab_size
        draw = np.random.default_rng(args.seed)
        prompts = [draw.integers(0, vocab, args.length).tolist() for _ in range(args.prompts)]
        theirs = logits_of(model, prompts)
        exact = logits_of(model.float(), prompts)
        del model
        release()
        ours, seconds = octavo_logits(folder, prompts, args)
        release()
        short = [prompt[:DECODED] for prompt in prompts]
        decoded, _ = octavo_logits(folder, short, args, max_num_batched_tokens=1, max_num_seqs=1)
    rows = [
        compare("transformers", theirs, exact),
        compare("octavo", ours, exact),
        compare("transformers, first tokens", [x[:DECODED] for x in theirs], exact),
        compare("octavo, a token a step", decoded, exact),
    ]
    ratios = [rows[1]["median"] / rows[0]["median"], rows[3]["median"] / rows[2]["median"]]
    for row in rows:
        print(
            f"{row['engine']:28} error p50 {row['median']:.5f}  p99 {row['p99']:.5f}  most {row['most']:.5f}"
            f"  same argmax {row['same_argmax']:.4f}"
        )
    print(f"ours / theirs: {ratios[0]:.3f}, a token a step {ratios[1]:.3f} (at most {MOST}); ", end="")
    print(f"weights loaded in {seconds:.2f} s")
    if args.output:
        result = describe(args) | {"rows": rows, "ratios": ratios, "load_s": round(seconds, 3)}
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n")
    return int(max(ratios) > MOST)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="Qwen3-0.6B", help=f"a folder, or one of {', '.join(CONFIGS)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON file to write")
    return parser.parse_args()


def load(folder: Path, args: argparse.Namespace) -> Any:
    """transformers' model in bfloat16: of the folder's weights, or of random ones where it has none."""
    auto = transformers.AutoModelForCausalLM
    if args.model not in CONFIGS:
        return auto.from_pretrained(folder, dtype=torch.bfloat16).to(args.device).eval()
    torch.manual_seed(args.seed)
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device(args.device):
        return auto.from_config(config, dtype=torch.bfloat16).eval()


def logits_of(model: Any, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Logits of every token of each prompt, [N, V] float32 on the host."""
    found = []
    for prompt in prompts:
        with torch.inference_mode():
            out = model(torch.tensor([prompt], device=model.device), use_cache=False)
        found.append(out.logits[0].float().cpu())
    return found


def octavo_logits(
    folder: Path, prompts: list[list[int]], args: argparse.Namespace, **limits: int
) -> tuple[list[torch.Tensor], float]:
    """The same of Octavo, one prompt after the other, and the seconds until the engine was made."""
    start = time.perf_counter()
    llm = LLM(
        str(folder),
        device=args.device,
        dtype="bfloat16",
        max_model_len=len(prompts[0]) + 16,
        num_gpu_blocks_override=2 + (len(prompts[0]) + 16) // 16,
        enable_prefix_caching=False,
        **limits,
    )
    seconds = time.perf_counter() - start
    runner: Any = llm.llm_engine.runner
    score, pieces = runner._score, []

    def watched(plan: Any, columns: Any, hidden: torch.Tensor) -> Any:
        pieces.append(runner._logits(hidden[: plan.num_tokens]).float().cpu())
        return score(plan, columns, hidden)

    runner._score = watched
    # Log-probabilities of the prompt are asked for so that every one of its tokens is scored.
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, ignore_eos=True)
    found = []
    for prompt in prompts:
        pieces.clear()
        llm.generate([prompt], params, use_tqdm=False)
        found.append(torch.cat(pieces))
    return found, seconds


def release() -> None:
    """Gives a model's memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def compare(engine: str, logits: list[torch.Tensor], exact: list[torch.Tensor]) -> dict[str, Any]:
    """Errors of one engine. The tokens of `logits` are the first of each prompt; the last one needs no score,
    so it may lack.
    """
    errors, same = [], []
    for got, want in zip(logits, exact):
        want = want[: len(got)]
        spread = (want - want.mean(-1, keepdim=True)).norm(dim=-1)
        errors.append(((got - want).norm(dim=-1) / spread).double())
        same.append((got.argmax(-1) == want.argmax(-1)).double())
    error = torch.cat(errors)
    return {
        "engine": engine,
        "tokens": len(error),
        "median": float(error.median()),
        "p99": float(error.quantile(0.99)),
        "most": float(error.max()),
        "same_argmax": float(torch.cat(same).mean()),
    }


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """What was compared, on what, when and how."""
    return {
        "benchmark": "accuracy",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "bench/accuracy.py", *sys.argv[1:]]),
        "octavo": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else None,
        "model": Path(args.model).name,
        "prompts": args.prompts,
        "length": args.length,
    }


if __name__ == "__main__":
    raise SystemExit(main())
