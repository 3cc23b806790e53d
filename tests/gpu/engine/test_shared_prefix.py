"""Decode rows that share a prompt on a GPU: its attention is computed once for all, answers are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from octavo import LLM, SamplingParams
from octavo.outputs import RequestOutput
from octavo.runner import shapes

HEADS = {"hidden_size": 128, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
ROWS, COMMON = 70, 400
# Log-probabilities whose sums are added in another order: of a first token, and of later ones, which see keys
# that differ already. Logits in bfloat16 stand 0.06 apart from 8 on. Two that are as near may change places.
CLOSE, LATER = 0.05, 0.5


def answers(llm: LLM, prompts: list[list[int]], **changes: Any) -> list[RequestOutput]:
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, **changes)
    outputs: list[RequestOutput] = llm.generate(prompts, params, use_tqdm=False)
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}
    return outputs


def check_alike(want: RequestOutput, got: RequestOutput) -> None:
    """Token by token, until two that are as likely as each other change places: then texts are different."""
    first, also = want.outputs[0], got.outputs[0]
    assert first.logprobs is not None and also.logprobs is not None
    for place, (token, other) in enumerate(zip(first.token_ids, also.token_ids)):
        one, two = first.logprobs[place], also.logprobs[place]
        for each in set(one) & set(two):
            assert abs(one[each].logprob - two[each].logprob) < (LATER if place else CLOSE), (place, each)
        if token != other:
            assert other in one and token in two, (place, token, other)
            assert one[token].logprob - one[other].logprob < LATER, (place, token, other)
            return


def shared_shapes(llm: LLM) -> list[shapes.StepShape]:
    """Those of captured steps that only decode, by the kernels that share."""
    runner: Any = llm.llm_engine.runner
    graphs = runner._run.__self__._graphs
    return [shape for shape in graphs if shape.queries == 0 and shape.tokens == shape.samples > 16]


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_rows_that_share_a_prompt_answer_as_they_do_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("prefixes are shared on compute capability 9.0 alone")
    folder = tiny_models.save_model(tmp_path / name, name, **HEADS)
    room: dict[str, Any] = {"max_model_len": 512, "max_num_seqs": 128, "max_num_batched_tokens": 4096}
    made: dict[str, LLM] = {}
    for kind, worth in (("apart", 1 << 60), ("shared", 1)):
        monkeypatch.setattr(shapes, "_WORTH_SHARING_BYTES", worth)
        made[kind] = LLM(
            str(folder), device="cuda", dtype="bfloat16", num_gpu_blocks_override=2000, max_logprobs=8, **room
        )
    common = tiny_models.random_prompts(2, low=COMMON, high=COMMON, seed=61)
    others = tiny_models.random_prompts(ROWS, low=3, high=60, seed=62)
    strangers = tiny_models.random_prompts(9, low=20, high=300, seed=63)
    prompts = [common[i % 2] + other for i, other in enumerate(others)]
    prompts[30:30] = strangers[:4]
    prompts += strangers[4:]
    for _ in range(2):  # the second time nobody computes the prefixes, and steps are replayed
        apart, shared = (answers(llm, prompts, logprobs=4) for llm in made.values())
        for want, got in zip(apart, shared):
            check_alike(want, got)
        plain = [answers(llm, prompts) for llm in made.values()]  # by kernels that know no logprobs
        equal = sum(a.outputs[0].token_ids == b.outputs[0].token_ids for a, b in zip(*plain))
        assert equal > 0.5 * len(prompts)
    assert shared_shapes(made["shared"])
    assert not shared_shapes(made["apart"])
