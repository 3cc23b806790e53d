"""Logits of every model equal transformers' in float32, however a sequence is cut into steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny_models
import torch
from models.stepper import Stepper

from octavo.hf_config import load_model_spec

TOLERANCE = 5e-5  # logits reach 15, so this is 3e-6 of them
ROPE = {"rope_type": "default", "rope_theta": 1e4}
PROMPT = tiny_models.random_prompts(1, low=100, high=100, seed=3)[0]


@torch.inference_mode()
def expected(model: Any, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert got.dtype == torch.float32
    assert got.shape == want.shape
    assert (got - want.float()).abs().max().item() < tolerance


@pytest.mark.parametrize(
    "chunks",
    [[100], [16] * 6 + [4], [1] * 100, [37, 1, 1, 61], [15, 17, 33, 35]],
    ids=["prefill", "blocks", "decode", "mixed", "odd"],
)
def test_a_sequence_in_any_chunks(
    tiny_folder: Any, reference: Any, model_name: str, chunks: list[int]
) -> None:
    stepper = Stepper(tiny_folder(model_name))
    assert_close(stepper.feed(PROMPT, chunks), expected(reference(model_name), PROMPT))


def test_rows_of_a_mixed_batch_do_not_see_each_other(
    tiny_folder: Any, reference: Any, model_name: str
) -> None:
    prompts = tiny_models.random_prompts(4, low=40, high=90, seed=5)
    stepper = Stepper(tiny_folder(model_name), rows=4)
    parts: dict[int, list[torch.Tensor]] = {row: [] for row in range(4)}
    taken = [0] * 4
    # Row 0 decodes while the others join, one after another, in chunks; rows change their order in the batch.
    plans = [{0: 20}, {1: 33, 0: 1}, {0: 1, 2: 17, 1: 1}, {3: 40, 2: 5, 1: 1, 0: 1}, {2: 1, 0: 3, 3: 1}]
    rest = {row: len(prompts[row]) - sum(plan.get(row, 0) for plan in plans) for row in (3, 1, 0, 2)}
    for plan in [*plans, {row: size for row, size in rest.items() if size > 0}]:
        batch = {row: prompts[row][taken[row] : taken[row] + size] for row, size in plan.items()}
        for row, logits in stepper.step(batch).items():
            parts[row].append(logits)
            taken[row] += len(logits)
    for row, prompt in enumerate(prompts):
        assert_close(torch.cat(parts[row]), expected(reference(model_name), prompt[: taken[row]]))


def test_the_window_changes_what_is_seen(tiny_folder: Any, reference: Any) -> None:
    """Guards the reference: a window that no token ever leaves would prove nothing."""
    narrow, wide = expected(reference("mistral-window"), PROMPT), expected(reference("mistral"), PROMPT)
    assert (narrow[: tiny_models.WINDOW] - wide[: tiny_models.WINDOW]).abs().max() < 1e-4
    assert (narrow[tiny_models.WINDOW :] - wide[tiny_models.WINDOW :]).abs().max() > 0.1


def test_layers_may_differ_in_their_windows(tmp_path: Any) -> None:
    folder = tiny_models.save_model(
        tmp_path, "qwen3", use_sliding_window=True, sliding_window=20, max_window_layers=1
    )
    stepper = Stepper(folder)
    assert stepper.spec.layer_windows == (0, 20, 20)
    model = load_reference(folder)
    assert_close(stepper.feed(PROMPT, [50, 1, 49]), expected(model, PROMPT))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_logits_stay_near_float32(
    tiny_folder: Any, reference: Any, model_name: str, dtype: str
) -> None:
    """Teacher-forced. Rounding to bf16 (8 bits) errs by up to 2^-9 of a value; after 3 layers the error of a
    logit stays within 4 % of the logits' spread on average and 20 % at worst (fp16: an eighth of that)."""
    want = expected(reference(model_name), PROMPT)
    got = Stepper(tiny_folder(model_name), dtype=dtype).feed(PROMPT, [60, 1, 39])
    error = (got - want).abs() / want.std()
    if load_model_spec(tiny_folder(model_name)).experts is not None:
        # A router near a tie chooses another expert: that is another function of the token, not an error. As
        # many tokens as in transformers' own model of this precision may differ so.
        model = copy.deepcopy(reference(model_name)).to(getattr(torch, dtype))
        theirs = (expected(model, PROMPT).float() - want).abs() / want.std()
        assert error.mean().item() < 1.5 * theirs.mean().item()
        error = error[error.amax(-1).argsort()[: len(PROMPT) // 2]]
    scale = 1.0 if dtype == "bfloat16" else 1 / 8
    assert error.mean().item() < 0.04 * scale
    assert error.max().item() < 0.20 * scale


def load_reference(folder: Any) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_key_value_heads": 4, "hidden_act": "gelu_pytorch_tanh"}),
        ("llama", {"num_key_value_heads": 1, "head_dim": 64, "tie_word_embeddings": True}),
        ("qwen3", {"attention_bias": True, "rms_norm_eps": 1e-3}),
        ("deepseek-v2", {"q_lora_rank": None, "topk_method": "greedy", "rms_norm_eps": 1e-3}),
        ("deepseek-v3", {"q_lora_rank": 40, "attention_bias": True, "rope_interleave": False}),
        ("deepseek-v3", {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "rope_parameters": ROPE}),
    ],
    ids=[
        "biases",
        "multi-head-gelu",
        "multi-query-tied",
        "qwen3-bias",
        "deepseek-greedy",
        "deepseek-bias-halves",
        "deepseek-ungrouped",
    ],
)
def test_what_a_config_may_change(tmp_path: Any, name: str, changes: dict[str, Any]) -> None:
    folder = tiny_models.save_model(tmp_path, name, **changes)
    assert_close(Stepper(folder).feed(PROMPT, [64, 36]), expected(load_reference(folder), PROMPT))
