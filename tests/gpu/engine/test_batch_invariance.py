"""With batch_invariant a request's logits on a GPU are the same bits alone and among 256 others."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from octavo import LLM, SamplingParams
from octavo.outputs import RequestOutput

VOCAB = tiny_models.VOCAB_SIZE
TARGETS = [tiny_models.random_prompts(1, low=n, high=n, seed=n)[0] for n in (3, 41, 150)]
SCORED = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=VOCAB, prompt_logprobs=VOCAB)
UNSCORED = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
ROOM: dict[str, Any] = {"max_model_len": 256, "max_num_seqs": 256, "max_logprobs": -1}
CUTS: dict[str, dict[str, Any]] = {
    "together": {"max_num_batched_tokens": 4096, "num_gpu_blocks_override": 4000},
    "in-chunks": {"max_num_batched_tokens": 300, "long_prefill_token_threshold": 7},
    "preempted": {"max_num_batched_tokens": 256, "num_gpu_blocks_override": 40},
    "kernel-by-kernel": {"max_num_batched_tokens": 512, "enforce_eager": True},
}
# Heads of 64 run on tensor cores, the tiny models' own of 32 on the plain kernel.
HEADS: dict[str, dict[str, Any]] = {
    "tensor-cores": {"hidden_size": 128, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    "plain": {},
}


def bits(output: RequestOutput) -> list[Any]:
    """The tokens and every log-probability, exactly."""
    completion = output.outputs[0]
    rows = [*(output.prompt_logprobs or ()), *(completion.logprobs or ())]
    exact = [None if row is None else sorted((t, p.logprob.hex()) for t, p in row.items()) for row in rows]
    return [list(completion.token_ids), exact]


def alone(llm: LLM) -> list[Any]:
    return [bits(llm.generate([target], SCORED, use_tqdm=False)[0]) for target in TARGETS]


def in_company(llm: LLM, scored: SamplingParams = SCORED) -> list[Any]:
    """The targets among 253 others, at random places."""
    prompts = TARGETS + tiny_models.random_prompts(253, low=1, high=90, seed=7)
    order = list(range(len(prompts)))
    random.Random(5).shuffle(order)
    other = [
        SamplingParams(temperature=0, max_tokens=1 + i % 40, ignore_eos=True) for i in range(len(prompts))
    ]
    params = [scored if i < len(TARGETS) else other[i] for i in order]
    outputs = llm.generate([prompts[i] for i in order], params, use_tqdm=False)
    return [bits(outputs[order.index(i)]) for i in range(len(TARGETS))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Path]]:
    """Return a function: name, one of HEADS -> the folder of such a checkpoint."""
    made: dict[tuple[str, str], Path] = {}

    def folder(name: str, heads: str) -> Path:
        if (name, heads) not in made:
            path = tmp_path_factory.mktemp(f"{name}-{heads}")
            made[name, heads] = tiny_models.save_model(path, name, **HEADS[heads])
        return made[name, heads]

    yield folder


def make(folder: Path, **options: Any) -> LLM:
    defaults = {
        "device": "cuda",
        "dtype": "bfloat16",
        "batch_invariant": True,
        "num_gpu_blocks_override": 1000,
    }
    return LLM(str(folder), **{**defaults, **ROOM, **options})


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gemma2"])
def test_logits_are_the_same_bits_alone_and_among_256(folders: Any, name: str, heads: str) -> None:
    folder = folders(name, heads)
    truth = alone(make(folder, enable_prefix_caching=False))
    for label, cut in CUTS.items():
        llm = make(folder, **cut)
        assert in_company(llm) == truth, label
        assert alone(llm) == truth, label  # now with what the cache kept
        # Steps that nobody wants scores of are replayed from graphs.
        assert [tokens for tokens, _ in in_company(llm, UNSCORED)] == [tokens for tokens, _ in truth], label


def test_float32_is_refused(folders: Any) -> None:
    with pytest.raises(ValueError, match=r"batch_invariant.*dtype='bfloat16'"):
        make(folders("qwen3", "plain"), dtype="float32")
