"""Which device a plan is for, and what a GPU's memory goes to: needs no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig
from octavo.errors import CapacityError
from octavo.plan import Plan, resolve, target

GIB = 1 << 30


@pytest.fixture
def folder(tiny_folder: Any) -> Path:
    found: Path = tiny_folder("llama")
    return found


def plan_for_gpu(folder: Path, memory: int, **cache: Any) -> Plan:
    return resolve(
        ModelConfig(model=folder),
        cache=CacheConfig(**cache),
        device=DeviceConfig(device="cuda"),
        available_memory=memory,
    )


@pytest.fixture
def gpu(monkeypatch: Any) -> None:
    """A GPU of 80 GiB of which 2 are taken."""
    monkeypatch.setattr(target, "gpu_obstacle", lambda: None)
    monkeypatch.setattr(target, "_gpu_memory", lambda: (78 * GIB, 80 * GIB, "GPU 80"))


def test_auto_takes_the_gpu_where_there_is_one_and_says_so(folder: Path, gpu: None) -> None:
    plan = resolve(ModelConfig(model=folder))
    assert (plan.device, plan.dtype) == ("cuda", "bfloat16")
    assert "GPU 80" in (plan.why("device") or "")
    assert resolve(ModelConfig(model=folder), device=DeviceConfig(device="cpu")).device == "cpu"


def test_auto_without_a_gpu_is_the_cpu_and_says_why(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(target, "gpu_obstacle", lambda: "this machine has no NVIDIA GPU")
    plan = resolve(ModelConfig(model=folder))
    assert (plan.device, plan.why("device")) == ("cpu", "this machine has no NVIDIA GPU")


def test_a_gpu_that_is_asked_for_and_not_there_is_refused_with_the_remedy(
    folder: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(target, "gpu_obstacle", lambda: "this machine has no NVIDIA GPU")
    with pytest.raises(ValueError, match="device='cuda' .*no NVIDIA GPU, or use device='cpu'"):
        resolve(ModelConfig(model=folder), device=DeviceConfig(device="cuda"))


def test_a_build_without_cuda_ops_names_the_build_that_has_them(monkeypatch: Any) -> None:
    monkeypatch.setattr(target, "has_cuda_ops", lambda: False)
    assert "OCTAVO_CUDA=ON" in (target.gpu_obstacle() or "")


def test_the_ledger_of_a_gpu_adds_up_to_its_share(folder: Path) -> None:
    """The pool takes what nothing else needs, to the last block."""
    plan = plan_for_gpu(folder, 8 * GIB, gpu_memory_utilization=0.5)
    ledger = dict(plan.ledger)
    assert {"workspace", "graphs", "reserve"} < ledger.keys()
    budget = 4 * GIB - target.CUDA_CONTEXT_BYTES
    most = (1 + 256 * 128) * plan.footprint.block_bytes
    assert ledger["KV cache"] == min(most, budget - plan.footprint.fixed_bytes)
    assert plan.footprint.fixed_bytes == sum(ledger.values()) - ledger["KV cache"]


def test_memory_in_use_by_others_is_not_planned_with(folder: Path, gpu: None) -> None:
    plan = resolve(ModelConfig(model=folder), cache=CacheConfig(gpu_memory_utilization=0.05))
    budget = 80 * GIB // 20 - 2 * GIB
    fits = max(budget - plan.footprint.fixed_bytes, 0) // plan.footprint.block_bytes
    assert plan.num_blocks <= fits
    assert "2.00 GiB in use" in (plan.why("num_blocks") or "") or plan.num_blocks < fits


def test_without_graphs_their_memory_goes_to_the_pool(folder: Path) -> None:
    def of(enforce_eager: bool) -> Plan:
        device = DeviceConfig(device="cuda", enforce_eager=enforce_eager)
        return resolve(ModelConfig(model=folder), device=device, available_memory=8 * GIB)

    assert "graphs" in dict(of(False).ledger)
    assert "graphs" not in dict(of(True).ledger)
    assert of(True).enforce_eager


def test_a_gpu_too_small_is_refused_with_what_is_missing(folder: Path) -> None:
    with pytest.raises(CapacityError, match=r"need 1\.\d+ GiB, and 256\.0 MiB are there") as caught:
        plan_for_gpu(folder, 1 * GIB)
    assert "90% of the 1.00 GiB of the GPU" in str(caught.value)


def test_a_large_gpu_gets_larger_steps(folder: Path) -> None:
    small, large = plan_for_gpu(folder, 16 * GIB), plan_for_gpu(folder, 80 * GIB)
    assert (small.max_num_seqs, small.max_num_batched_tokens) == (256, 2048)
    assert (large.max_num_seqs, large.max_num_batched_tokens) == (1024, 8192)
    given = resolve(
        ModelConfig(model=folder),
        scheduler=SchedulerConfig(max_num_seqs=7),
        device=DeviceConfig(device="cuda"),
        available_memory=80 * GIB,
    )
    assert given.max_num_seqs == 7


def test_a_host_tier_beside_a_gpu_is_no_part_of_the_gpu_s_memory(folder: Path) -> None:
    def of(size: float | None) -> Plan:
        cache = CacheConfig(kv_offloading_size=size)
        return resolve(
            ModelConfig(model=folder),
            cache=cache,
            device=DeviceConfig(device="cuda"),
            available_memory=8 * GIB,
        )

    plain, tiered = of(None), of(512)
    assert dict(tiered.ledger)["host tier"] == 512 * GIB
    assert tiered.num_blocks == plain.num_blocks
    assert tiered.engine_options()["kv_load_failure_policy"] == "recompute"


def test_a_host_tier_beside_this_gpu_has_to_fit_into_this_machine(folder: Path, monkeypatch: Any) -> None:
    gpu = target.Target("cuda", "GPU", 8 * GIB)
    monkeypatch.setattr("octavo.plan.resolver.choose_target", lambda device, memory: gpu)
    monkeypatch.setattr("octavo.plan.machine.available_memory", lambda: 4 * GIB)
    resolve(ModelConfig(model=folder), cache=CacheConfig(kv_offloading_size=3))
    with pytest.raises(ValueError, match="kv_offloading_size=5 .*4.00 GiB of memory are available"):
        resolve(ModelConfig(model=folder), cache=CacheConfig(kv_offloading_size=5))


def test_drafts_on_a_gpu_take_room_for_their_logits(folder: Path) -> None:
    def of(config: Any) -> Plan:
        scheduler = SchedulerConfig(speculative_config=config, max_num_seqs=256)
        device = DeviceConfig(device="cuda")
        return resolve(
            ModelConfig(model=folder), scheduler=scheduler, device=device, available_memory=80 * GIB
        )

    drafted = of({"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4})
    assert drafted.footprint.logits_bytes >= of(None).footprint.logits_bytes
    assert drafted.engine_options()["max_draft_tokens"] == 4


@pytest.mark.parametrize("name", ["bamba", "mixtral", "llama4", "deepseek-v2"])
def test_recurrent_layers_experts_chunks_and_latents_have_cuda_kernels(tiny_folder: Any, name: str) -> None:
    assert plan_for_gpu(tiny_folder(name), 80 * GIB).device == "cuda"


def test_a_batch_invariant_gpu_takes_16_bits_and_steps_that_one_plan_holds(folder: Path) -> None:
    def of(dtype: str, seqs: int | None = None) -> Plan:
        return resolve(
            ModelConfig(model=folder, dtype=dtype),
            scheduler=SchedulerConfig(max_num_seqs=seqs),
            device=DeviceConfig(device="cuda", batch_invariant=True),
            available_memory=80 * GIB,
        )

    assert of("bfloat16").batch_invariant
    with pytest.raises(ValueError, match=r"batch_invariant=True .* use dtype='bfloat16'"):
        of("float32")
    with pytest.raises(ValueError, match=r"max_num_seqs=4096 .* fewer than 4096"):
        of("float16", 4096)
