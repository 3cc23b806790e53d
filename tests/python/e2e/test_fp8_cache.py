"""kv_cache_dtype="fp8" through the whole engine: the tokens of transformers with a cache in e4m3."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from e2e.truth import mixed_prompts
from fp8_caches import kept, logits_of, nearest, save_scales
from safetensors.torch import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.cli.main import main
from octavo.errors import ModelError

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=0)
Scales = dict[int, tuple[float, float]]


def test_the_reference_rounds_as_the_format_is_defined() -> None:
    codes = torch.arange(127, dtype=torch.uint8)
    numbers = codes.view(torch.float8_e4m3fn).double()
    assert torch.equal(nearest(numbers), numbers)
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 2.5, 100_000)
    assert torch.equal(nearest(x), x.clamp(-448, 448).to(torch.float8_e4m3fn).double())
    assert kept(torch.tensor([1e9, -3.0]), 0.5).tolist() == [224.0, -3.0]


def assert_greedy(llm: LLM, model: Any, scales: Scales | None = None, count: int = 16) -> None:
    """Each token is the likeliest by transformers, at its probability. A number that lies between two of the
    format within float32's error may fall either way, so a few tokens may be second by very little."""
    prompts = mixed_prompts()[:count]
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], GREEDY, use_tqdm=False)
    best, total, differences = 0, 0, []
    for prompt, output in zip(prompts, outputs):
        completion = output.outputs[0]
        tokens = list(completion.token_ids)
        logits = logits_of(model, prompt + tokens[:-1], scales)[len(prompt) - 1 :]
        known = torch.log_softmax(logits.double(), dim=-1)
        chosen = known.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        best += int((known.argmax(1) == torch.tensor(tokens)).sum())
        total += len(tokens)
        assert (known.amax(1) - chosen).max() < 0.02
        assert completion.logprobs is not None
        said = [entry[token].logprob for entry, token in zip(completion.logprobs, tokens)]
        differences.append((torch.tensor(said, dtype=torch.float64) - chosen).abs())
    assert best >= total - 2
    # With a cache that rounds nothing the median is 0.02 (Gemma 3) to 0.09.
    difference = torch.cat(differences)
    assert difference.median() < 1e-3
    assert difference.quantile(0.9) < 1e-2


# One group and several, norms of heads, soft caps, windows, recurrent layers, experts, sinks, chunks.
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3", "qwen2-hybrid", "mixtral"])
def test_greedy_tokens_are_those_of_transformers(
    make_llm: Callable[..., LLM], reference: Callable[[str], Any], name: str
) -> None:
    llm = make_llm(name, kv_cache_dtype="fp8", max_num_batched_tokens=64)
    assert llm.llm_engine.plan.kv_dtype == "fp8"
    assert_greedy(llm, reference(name))
    assert_greedy(llm, reference(name))  # from the prefix cache


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_preempted_requests_and_a_host_tier_keep_it(
    make_llm: Callable[..., LLM], reference: Callable[[str], Any], name: str
) -> None:
    small = {"num_gpu_blocks_override": 20, "max_model_len": 192, "max_num_seqs": 16}
    for tier in (None, 0.25):
        llm = make_llm(name, kv_cache_dtype="fp8_e4m3", kv_offloading_size=tier, **small)
        assert_greedy(llm, reference(name))
        counted = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()}
        assert counted["octavo:num_preemptions"] > 0


def test_a_prefix_that_ends_inside_a_block_is_copied(
    make_llm: Callable[..., LLM], reference: Callable[[str], Any]
) -> None:
    llm = make_llm("llama", kv_cache_dtype="fp8")
    ids = tiny_models.random_prompts(1, low=90, high=90)[0]
    for length in (90, 60, 41):
        prompt = ids[:length] + [7, 9, 11]
        params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        output = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0]
        tokens = list(output.outputs[0].token_ids)
        logits = logits_of(reference("llama"), prompt + tokens[:-1])[len(prompt) - 1 :]
        assert logits.argmax(1).tolist() == tokens
    assert output.num_cached_tokens == 41


@pytest.mark.parametrize("name", ["bamba", "gpt-oss", "llama4", "qwen3-moe"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kind_of_layer_runs_with_it(make_llm: Callable[..., LLM], name: str, dtype: str) -> None:
    """Tokens do not depend on chunks and batches, as they would if anything else were read than is kept."""
    runs = []
    for chunk in (2048, 16):
        llm = make_llm(name, kv_cache_dtype="fp8", dtype=dtype, max_num_batched_tokens=chunk, max_num_seqs=4)
        params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=1)
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in mixed_prompts()[:4]], params, use_tqdm=False
        )
        runs.append([list(output.outputs[0].token_ids) for output in outputs])
    same = sum(a == b for one, other in zip(*runs) for a, b in zip(one, other))
    assert same >= 18 if dtype == "bfloat16" else same == 24


def scale_names(form: str, layers: int) -> dict[str, float]:
    names: dict[str, float] = {}
    for layer in range(layers):
        at, k, v = f"model.layers.{layer}.self_attn", 0.02 * (layer + 1), 0.03 + 0.01 * layer
        if form == "attention":
            names |= {f"{at}.k_scale": k, f"{at}.v_scale": v}
        elif form == "projections":
            names |= {f"{at}.k_proj.k_scale": k, f"{at}.v_proj.v_scale": v}
        elif form == "outputs":
            names |= {f"{at}.k_proj.output_scale": k, f"{at}.v_proj.output_scale": v}
        else:
            names |= {f"{at}.kv_scale": k}
    return names


@pytest.mark.parametrize("form", ["attention", "projections", "outputs", "both"])
def test_scales_of_a_checkpoint_are_used(
    tiny_folder: Callable[[str], Path], reference: Callable[[str], Any], tmp_path: Path, form: str
) -> None:
    names = scale_names(form, 3)
    folder = save_scales(tiny_folder("llama"), tmp_path / "scaled", names)
    values = list(torch.tensor(list(names.values())).tolist())
    pairs = zip(values, values) if form == "both" else zip(values[::2], values[1::2])
    sizes: dict[str, Any] = {"num_threads": 1, "max_model_len": 256, "num_gpu_blocks_override": 256}
    llm = LLM(folder, kv_cache_dtype="fp8", **sizes)
    assert_greedy(llm, reference("llama"), dict(enumerate(pairs)), count=6)
    # In the model's dtype nothing is scaled.
    prompt = mixed_prompts()[0]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    tokens = LLM(folder, **sizes).generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0].outputs[0]
    with torch.inference_mode():
        logits = reference("llama")(torch.tensor([prompt + list(tokens.token_ids)[:-1]])).logits[0]
    assert logits[len(prompt) - 1 :].argmax(1).tolist() == list(tokens.token_ids)


def test_bad_scales_are_named(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    def load(folder: str, scales: dict[str, float]) -> LLM:
        path = save_scales(tiny_folder("llama"), tmp_path / folder, scales)
        return LLM(path, kv_cache_dtype="fp8", max_model_len=64, num_gpu_blocks_override=16)

    names = scale_names("attention", 3)
    some = {name: value for name, value in names.items() if ".1.self_attn.v" not in name}
    with pytest.raises(ModelError, match=r"not both of layers 1: use a complete checkpoint"):
        load("some", some)
    with pytest.raises(ModelError, match=r"layers.2.self_attn.v_scale is 0: a finite number above 0"):
        load("zero", {**names, "model.layers.2.self_attn.v_scale": 0.0})
    with pytest.raises(ModelError, match=r"layers.9.self_attn.k_scale in .* is the scale of no layer"):
        load("alien", {**names, "model.layers.9.self_attn.k_scale": 1.0})
    path = save_scales(tiny_folder("llama"), tmp_path / "heads", names)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.self_attn.k_scale"] = torch.ones(2)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"k_scale is F32 \[2\]: one floating-point number a layer"):
        LLM(path, kv_cache_dtype="fp8", max_model_len=64, num_gpu_blocks_override=16)


def test_scales_of_one_are_said_once(make_llm: Callable[..., LLM], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "octavo"):
        make_llm("llama", kv_cache_dtype="fp8", num_gpu_blocks_override=64)
    said = [record.message for record in caplog.records if "fp8" in record.message]
    assert said == ["keys and values are stored in fp8 with scale 1: the checkpoint has none for them"]


def test_a_pool_of_the_same_bytes_holds_twice_the_tokens(tiny_folder: Callable[[str], Path]) -> None:
    sizes: dict[str, Any] = {"dtype": "bfloat16", "kv_cache_memory_bytes": "4MiB", "num_threads": 1}
    wide, narrow = (LLM(tiny_folder("gemma3"), kv_cache_dtype=kind, **sizes) for kind in ("auto", "fp8"))
    plans = [llm.llm_engine.plan for llm in (wide, narrow)]
    assert [plan.kv_dtype for plan in plans] == ["bfloat16", "fp8"]
    assert plans[1].num_blocks == (4 << 20) // (plans[0].footprint.block_bytes // 2)
    assert plans[1].footprint.token_bytes * 2 == plans[0].footprint.token_bytes
    held = [dict(plan.ledger)["KV cache"] for plan in plans]
    assert all(4 << 20 >= size > (4 << 20) - plans[0].footprint.block_bytes for size in held)


def test_what_cannot_be_is_refused(make_llm: Callable[..., LLM]) -> None:
    with pytest.raises(
        ValueError, match=r"kv_cache_dtype='fp8' .*use auto: latents are kept in the model's dtype"
    ):
        make_llm("deepseek-v2", kv_cache_dtype="fp8")
    with pytest.raises(ValueError, match=r"kv_cache_dtype='fp8_e5m2' .*use fp8, which is e4m3"):
        make_llm("llama", kv_cache_dtype="fp8_e5m2")
    with pytest.raises(ValueError, match=r"kv_cache_dtype='int8'"):
        make_llm("llama", kv_cache_dtype="int8")


def test_the_command_line_takes_it(
    tiny_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, flags = str(tiny_folder("qwen3")), ["--kv-cache-dtype", "fp8", "--dtype", "bfloat16"]
    assert main(["plan", folder, "--memory", "1GiB", "--json", *flags]) == 0
    narrow = json.loads(capsys.readouterr().out)
    assert main(["plan", folder, "--memory", "1GiB", "--json", "--dtype", "bfloat16"]) == 0
    wide = json.loads(capsys.readouterr().out)
    assert (narrow["kv_cache_dtype"], wide["kv_cache_dtype"]) == ("fp8", "bfloat16")
    assert narrow["bytes"]["KV_a_token"] * 2 == wide["bytes"]["KV_a_token"]
    most = [plan["table"][0]["most_requests"] for plan in (wide, narrow)]
    assert most[1] >= 2 * most[0]
    generate = ["generate", folder, "the cat", "--max-tokens", "4", "--ignore-eos", "--json"]
    assert main([*generate, "--kv-cache-memory-bytes", "8MiB", *flags]) == 0
    assert len(json.loads(capsys.readouterr().out)["outputs"][0]["token_ids"]) == 4


def test_an_encoder_s_keys_and_values_are_kept_so_too(whisper_folder: Path, whisper: Any) -> None:
    """The tokens of transformers' Whisper whose cross attention and past are rounded likewise."""
    llm = LLM(whisper_folder, kv_cache_dtype="fp8", num_threads=1, num_gpu_blocks_override=64)
    sound = tiny_models.sounds(1, seed=3)[0]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    prompt = {"prompt_token_ids": [2, 9, 11], "multi_modal_data": {"audio": (sound, 16000)}}
    output = llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]
    exact = LLM(whisper_folder, num_threads=1, num_gpu_blocks_override=64)
    other = exact.generate(prompt, params, use_tqdm=False)[0].outputs[0]
    assert output.logprobs is not None and other.logprobs is not None
    pairs = zip(output.token_ids, output.logprobs, other.token_ids, other.logprobs)
    moved = [abs(mine[a].logprob - theirs[b].logprob) for a, mine, b, theirs in pairs if a == b]
    # Rounding shows, and moves little: both caches are read as they were written.
    assert moved and 1e-6 < max(moved) < 0.5
    assert moved[0] < 0.2
