"""The pictures of docs/performance.md, drawn from bench/results. Needs matplotlib.

python bench/plots.py [--results bench/results] [--output docs/images]
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure

READ_BANDWIDTH = 4.60e12  # bytes a second that a kernel which only reads reaches on an H200
MODELS = ("Qwen3-0.6B", "Llama-3.1-8B")
# vLLM's time over ours that is wanted of each workload; decode1's is a share of the floor, not a ratio.
WANTED = {
    "Qwen3-0.6B": {"nano": 1.25, "sharegpt": 1.5, "prefix": 1.2},
    "Llama-3.1-8B": {"nano": 1.05, "sharegpt": 1.05, "prefix": 1.2, "longctx": 1.0},
}
WORKLOADS = ("nano", "sharegpt", "prefix", "longctx", "decode1")


def read_decode(path: Path) -> list[tuple[str, int, float, float]]:
    """Return (cell, bytes of keys and values, us, a peer's us) of the last decode table in the file."""
    table = path.read_text().rpartition("decode, us a layer")[2]
    cells = []
    for line in table.splitlines():
        match = re.match(r"(\d+)x(\d+)k\s+([\d.]+)(?:\s+[\d.]+){5}\s+([\d.]+)\s+([\d.]+)\s+(\d+)$", line)
        if match:
            batch, length = int(match[1]), 1024 * int(match[2])
            size = batch * length * 2 * 8 * 128 * 2
            cells.append((line.split()[0], size, float(match[3]), float(match[4])))
    return cells


def plot_decode(results: Path, output: Path) -> None:
    cells = sorted(read_decode(results / "attention_h200.txt"), key=lambda cell: cell[1])
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    sizes = [size / 1e6 for _, size, _, _ in cells]
    axes.loglog(
        sizes, [1e12 * size / READ_BANDWIDTH for size in sizes], "k--", lw=1, label="reading alone, 4.6 TB/s"
    )
    axes.loglog(sizes, [us for _, _, us, _ in cells], "o-", label="Octavo")
    axes.loglog(sizes, [peer for *_, peer in cells], "x", label="best of FlashInfer, FA3 and XQA")
    for cell, size, us, _ in cells:
        shift, side = ((4, -11), "left") if cell.startswith("1x") else ((-6, 5), "right")
        at = (size / 1e6, us)
        axes.annotate(cell, at, xytext=shift, textcoords="offset points", fontsize=7, ha=side)
    axes.set_xlabel("keys and values of a layer, MB")
    axes.set_ylabel("us a layer")
    axes.set_title("Paged decode attention, one H200 (8 KV heads, group 4, d 128, bf16)", fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(output / "decode_h200.svg", metadata={"Date": None})


def walls(path: Path) -> dict[str, float]:
    """Return the seconds of each workload in a result of bench/offline.py; of decode1 those of one token."""
    record: dict[str, Any] = json.loads(path.read_text())
    return {run["workload"]: run["wall_s"] for run in record["workloads"]}


def plot_offline(results: Path, output: Path) -> None:
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for axes, model in zip(figure.subplots(1, 2, sharey=True), MODELS):
        ours = walls(results / f"offline_h200-octavo-{model}.json")
        theirs = walls(results / f"offline_h200-vllm-{model}.json")
        names = [name for name in WORKLOADS if name in ours and name in theirs]
        ratios = [theirs[name] / ours[name] for name in names]
        bars = axes.bar(names, ratios, color="tab:blue", label="measured")
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        wanted = [(name, WANTED[model][name]) for name in names if name in WANTED[model]]
        axes.plot(*zip(*wanted), "_", color="tab:red", ms=22, mew=2, label="wanted")
        axes.axhline(1, color="k", lw=0.8)
        axes.set_title(model, fontsize=10)
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("vLLM 0.24's time / Octavo's")
    figure.savefig(output / "offline_h200.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    # Text stays text and ids do not change from run to run, so that a picture differs only with its numbers.
    rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "octavo"})
    plot_decode(options.results, options.output)
    plot_offline(options.results, options.output)


if __name__ == "__main__":
    main()
