"""`octavo plan`: exit codes, the ledger and the one number to change."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.command import octavo_command, python_code

# The folder's config: 2 layers, 2 KV heads of 16, float32.
KV_BYTES_A_TOKEN = 2 * 2 * 2 * 16 * 4


def plan_json(*arguments: str, code: int = 0) -> dict[str, object]:
    done = octavo_command("plan", *arguments, "--json")
    assert done.returncode == code, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_a_model_that_fits_exits_with_0(config_folder: Path) -> None:
    done = octavo_command("plan", str(config_folder), "--memory", "4GiB")
    assert done.returncode == 0, done.stderr
    assert "fits: 1 x 4,096 tokens" in done.stdout
    assert "weights" in done.stdout


def test_the_ledger_counts_kv_by_the_token(config_folder: Path) -> None:
    result = plan_json(str(config_folder), "--memory", "4GiB", "--context", "1024", "--batch", "3")
    sizes = result["bytes"]
    assert isinstance(sizes, dict)
    assert sizes["KV_a_token"] == KV_BYTES_A_TOKEN
    assert sizes["KV_cache"] == (3 * 1024 + 16) * KV_BYTES_A_TOKEN  # and the null block
    parts = ("weights", "activations", "rotary_table", "KV_cache")
    assert sizes["needed"] == sum(sizes[part] for part in parts)


@pytest.mark.parametrize("wanted", ["--batch", "--context", "--memory"])
def test_the_number_to_change_makes_it_fit(config_folder: Path, wanted: str) -> None:
    fixed = plan_json(str(config_folder), "--memory", "4GiB", "--context", "16")["bytes"]
    assert isinstance(fixed, dict)
    room = {"--batch": 9000, "--context": 900, "--memory": -100}[wanted] * KV_BYTES_A_TOKEN
    memory = str(fixed["needed"] - fixed["KV_cache"] + room)
    asked = ["--memory", memory, "--context", "4096", "--batch", "64"]
    refused = plan_json(str(config_folder), *asked, code=1)
    remedy = str(refused["remedy"]).split()
    assert remedy[0] == wanted
    asked[asked.index(wanted) + 1] = remedy[1]
    if wanted == "--context":  # a context was too long for even one request
        asked[asked.index("--batch") + 1] = "1"
    assert plan_json(str(config_folder), *asked)["fits"] is True


def test_the_verdict_is_about_the_largest_that_was_asked(config_folder: Path) -> None:
    memory = ["--memory", "200MiB"]
    assert plan_json(str(config_folder), *memory, "--context", "16,4096", "--batch", "1,1000", code=1)
    assert plan_json(str(config_folder), *memory, "--context", "16,4096")["batch"] == 1


def test_weights_are_counted_from_the_headers(config_folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1000, 7], "data_offsets": [0, 28000]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(28000)
    (config_folder / "model.safetensors").write_bytes(data)
    sizes = plan_json(str(config_folder), "--memory", "4GiB")["bytes"]
    assert isinstance(sizes, dict)
    assert sizes["weights"] == 28000
    halved = plan_json(str(config_folder), "--memory", "4GiB", "--dtype", "bf16")["bytes"]
    assert isinstance(halved, dict)
    assert halved["weights"] == 14000


def test_a_narrower_kv_cache_takes_less(config_folder: Path) -> None:
    common = [str(config_folder), "--memory", "4GiB"]
    narrow = plan_json(*common, "--kv-cache-dtype", "fp8")["bytes"]
    assert isinstance(narrow, dict)
    assert narrow["KV_a_token"] == KV_BYTES_A_TOKEN // 4


@pytest.mark.parametrize(
    "arguments",
    [["--memory", "lots"], ["--context", "0"], ["--batch", "0"], ["--context", "1m"], ["--dtype", "int3"]],
)
def test_a_bad_value_is_a_usage_error(config_folder: Path, arguments: list[str]) -> None:
    done = octavo_command("plan", str(config_folder), *arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_architecture_is_named(config_folder: Path) -> None:
    config = json.loads((config_folder / "config.json").read_text())
    (config_folder / "config.json").write_text(json.dumps(config | {"architectures": ["LamaForCausalLM"]}))
    done = octavo_command("plan", str(config_folder))
    assert done.returncode == 1
    assert "LamaForCausalLM" in done.stderr


def test_no_color_and_pipes_get_no_escapes(config_folder: Path) -> None:
    for extra in ({"NO_COLOR": "1"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, {}):
        assert "\x1b" not in octavo_command("plan", str(config_folder), **extra).stdout


def test_planning_imports_no_torch(config_folder: Path) -> None:
    done = python_code(
        "import sys\n"
        "from octavo.cli.main import main\n"
        f"main(['plan', {str(config_folder)!r}])\n"
        "sys.exit('torch imported' if 'torch' in sys.modules else 0)\n"
    )
    assert done.returncode == 0, done.stderr


def test_a_model_with_states_says_how_its_pool_is_cut(tiny_folder: Callable[[str], Path]) -> None:
    folder = str(tiny_folder("bamba"))
    done = octavo_command("plan", folder, "--memory", "4GiB")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"full +16 tokens of 1 layers, 8 KiB; 4 in a block of the pool, 0.0% unused", done.stdout
    )
    assert re.search(
        r"state +one state of 2 layers, 32 KiB; 1 in a block of the pool, 2.7% unused", done.stdout
    )
    assert re.search(r"short prompt +12 tokens take 40 KiB, 7.2% unused", done.stdout)
    groups = plan_json(folder, "--memory", "4GiB")["groups"]
    assert isinstance(groups, list)
    assert [(group["kind"], group["split"], group["waste"]) for group in groups] == [
        ("full", 4, 0.0),
        ("state", 1, 0.0273),
    ]
    narrow = octavo_command("plan", folder, "--memory", "4GiB", "--kv-cache-dtype", "fp8")
    # Keys and values shrink, the states do not.
    assert re.search(r"full +16 tokens of 1 layers, 2 KiB; 16 in a block", narrow.stdout), narrow.stdout
    assert re.search(r"state +one state of 2 layers, 32 KiB; 1 in a block", narrow.stdout)


def test_a_model_with_latents_says_so(tiny_folder: Callable[[str], Path]) -> None:
    folder = str(tiny_folder("deepseek-v3"))
    done = octavo_command("plan", folder, "--memory", "4GiB")
    assert done.returncode == 0, done.stderr
    assert "4 heads, latents of 48 + 16 for all of them" in done.stdout
    assert re.search(r"latent +16 tokens of 3 layers, 12 KiB; 1 in a block of the pool", done.stdout)
    result = plan_json(folder, "--memory", "4GiB")
    assert isinstance(result["groups"], list)
    assert isinstance(result["bytes"], dict)
    assert [group["kind"] for group in result["groups"]] == ["latent"]
    assert result["bytes"]["KV_a_token"] == 3 * (48 + 16) * 4
