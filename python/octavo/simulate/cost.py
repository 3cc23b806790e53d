"""Cost models: a roofline from a model's shape and a device, or a table from `octavo bench steps`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octavo import core
from octavo.errors import ConfigError, OctavoError, file_failure
from octavo.plan.footprint import DTYPE_BYTES, Footprint
from octavo.simulate.devices import Device

TABLE_FORMAT = "octavo-cost-1"
_MOST_CELLS = 1_000_000


def roofline(footprint: Footprint, device: Device) -> core.CostModel:
    """Return the model in which a step takes as long as its bytes or its arithmetic."""
    spec = footprint.spec
    size = DTYPE_BYTES[spec.dtype]
    table = spec.vocab_size * spec.hidden_size  # the embedding: a step reads rows of it, not all
    heads = 1 if spec.tie_embeddings else 2
    layers = max(footprint.weights_bytes // size - heads * table, 0) - _idle_parameters(footprint)
    visible = [spec.layer_windows[layer] for layer in spec.attention_layers]
    counts = [(window, visible.count(window)) for window in sorted(set(visible))]
    # Scores and their sum over the values: two multiplications and two additions an element.
    flops = 4 * spec.q_size
    if spec.latent is not None:
        flops = 2 * spec.num_heads * (spec.latent.width + spec.latent.rank)
    rate = device.flops_32bit if spec.dtype == "float32" else device.flops_16bit
    return core.CostModel.roofline(
        weight_bytes=float(footprint.weights_bytes - (heads - 1) * table * size),
        flops_of_a_token=2.0 * layers,
        flops_of_a_sample=2.0 * table,
        attention=[
            (window, float(count * footprint.token_layer_bytes), float(count * flops))
            for window, count in counts
        ],
        bytes_per_second=device.bandwidth * device.bandwidth_share,
        flops_per_second=rate * device.compute_share,
        step_seconds=device.seconds_of_launches(spec.num_layers),
    )


def _idle_parameters(footprint: Footprint) -> int:
    """Weights of the experts that one token does not go through."""
    experts, hidden = footprint.spec.experts, footprint.spec.hidden_size
    if experts is None:
        return 0
    return experts.layers.count(True) * (experts.count - experts.per_token) * 3 * hidden * experts.inner


def write_table(path: str, table: dict[str, Any]) -> None:
    """Write a measured table; OctavoError if that cannot be done."""
    text = json.dumps({"format": TABLE_FORMAT, **table}, indent=1) + "\n"
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OctavoError(file_failure(path, error, "written")) from error


def read_table(path: str) -> tuple[core.CostModel, dict[str, Any]]:
    """Return the cost model of a measured table, and the table. Raises ConfigError for what is none."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the cost model {file_failure(path, error)}") from error
    except ValueError as error:
        raise ConfigError(f"the cost model {path} cannot be read: {error}") from error
    if not isinstance(table, dict) or table.get("format") != TABLE_FORMAT:
        raise ConfigError(
            f"{path} is no cost model: its format is not {TABLE_FORMAT!r}; make one with octavo bench steps"
        )
    try:
        axes = {name: [int(value) for value in table[name]] for name in ("rows", "extra", "context")}
        seconds = [float(value) for value in table["seconds"]]
        if len(seconds) > _MOST_CELLS:
            raise ValueError(f"seconds has {len(seconds)} entries, more than {_MOST_CELLS}")
        return core.CostModel.table(**axes, seconds=seconds), table
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"the cost model {path} is damaged: {error}") from error
