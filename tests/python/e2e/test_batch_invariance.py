"""With batch_invariant a request's logits are the same bits whatever runs beside it and however it is cut."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tiny_models
from tiny_models import VOCAB_SIZE

from octavo import LLM, SamplingParams
from octavo.outputs import RequestOutput

MODELS = ("llama", "qwen3", "gemma3", "gemma2")  # plain, normed heads, windows, soft caps
TARGETS = [tiny_models.random_prompts(1, low=n, high=n, seed=n)[0] for n in (3, 41, 150)]
TOKENS = 20
# The log-probabilities of the whole vocabulary: every logit, up to what all of a row share.
SCORED = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=VOCAB_SIZE)
PROMPT_TOO = SamplingParams(
    temperature=0, max_tokens=2, ignore_eos=True, logprobs=VOCAB_SIZE, prompt_logprobs=VOCAB_SIZE
)
ROOM: dict[str, Any] = {"max_logprobs": -1, "max_model_len": 256}
# How a step may be cut. The pool of the third way holds four of the longest requests.
CUTS: dict[str, dict[str, Any]] = {
    "together": {"max_num_batched_tokens": 4096, "num_threads": 2},
    "in-chunks": {"max_num_batched_tokens": 300, "long_prefill_token_threshold": 7, "num_threads": 3},
    "preempted": {"max_num_batched_tokens": 128, "num_gpu_blocks_override": 34, "num_threads": 2},
    "guessed": {
        "max_num_batched_tokens": 512,
        "speculative_config": {
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_min": 1,
            "prompt_lookup_max": 2,
        },
    },
}


def others(count: int, seed: int) -> tuple[list[list[int]], list[SamplingParams]]:
    """Requests of any length that begin with prompts of their own or with parts of the targets."""
    draw = random.Random(seed)
    prompts = tiny_models.random_prompts(count, low=1, high=60, seed=seed)
    for prompt in prompts[::4]:
        target = draw.choice(TARGETS)
        prompt[:0] = target[: draw.randrange(len(target))]
    params = [
        SamplingParams(temperature=i % 2, seed=i, max_tokens=draw.randrange(1, 40), ignore_eos=True)
        for i in range(count)
    ]
    return prompts, params


def bits(output: RequestOutput) -> list[Any]:
    """The tokens and every log-probability, exactly."""
    completion = output.outputs[0]
    assert len(completion.token_ids) > 1
    rows = [*(output.prompt_logprobs or ()), *completion.logprobs]
    exact = [None if row is None else sorted((t, p.logprob.hex()) for t, p in row.items()) for row in rows]
    return [list(completion.token_ids), exact]


def alone(llm: LLM, params: SamplingParams) -> list[Any]:
    return [bits(llm.generate([target], params, use_tqdm=False)[0]) for target in TARGETS]


def in_company(llm: LLM, params: SamplingParams, count: int = 253) -> list[Any]:
    """The targets among so many others, at random places."""
    prompts, own = others(count, seed=count)
    order = [*range(len(prompts)), *(-1 - i for i in range(len(TARGETS)))]
    random.Random(3).shuffle(order)
    outputs = llm.generate(
        [TARGETS[-1 - i] if i < 0 else prompts[i] for i in order],
        [params if i < 0 else own[i] for i in order],
        use_tqdm=False,
    )
    return [bits(outputs[order.index(-1 - i)]) for i in range(len(TARGETS))]


@pytest.fixture(scope="module")
def truths(make_llm: Callable[..., LLM]) -> Callable[[str, str, SamplingParams], list[Any]]:
    """Returns a function: model, dtype, parameters -> what the targets give one at a time on one thread."""

    @functools.cache
    def of(name: str, dtype: str, prompt_too: bool) -> list[Any]:
        llm = make_llm(name, dtype=dtype, batch_invariant=True, enable_prefix_caching=False, **ROOM)
        return alone(llm, PROMPT_TOO if prompt_too else SCORED)

    return lambda name, dtype, params: of(name, dtype, params is PROMPT_TOO)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_same_bits_alone_and_among_256(
    make_llm: Callable[..., LLM],
    truths: Callable[[str, str, SamplingParams], list[Any]],
    name: str,
    cut: dict[str, Any],
    dtype: str,
) -> None:
    tight = "num_gpu_blocks_override" in cut
    llm = make_llm(name, dtype=dtype, batch_invariant=True, **{**ROOM, **cut})
    truth = truths(name, dtype, SCORED)
    assert in_company(llm, SCORED, 90 if tight else 253) == truth
    stats = llm.llm_engine.core.stats()
    assert stats["preemptions"] > 0 or not tight
    assert stats["accepted_tokens"] > 0 or "speculative_config" not in cut
    # Once more, with what the cache kept of the targets: blocks, and parts of blocks.
    assert alone(llm, SCORED) == truth
    assert llm.llm_engine.core.stats()["prefix_hits"] > stats["prefix_hits"] or tight


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_prompts_are_the_same_bits_in_chunks_among_others(
    make_llm: Callable[..., LLM],
    truths: Callable[[str, str, SamplingParams], list[Any]],
    name: str,
    dtype: str,
) -> None:
    llm = make_llm(name, dtype=dtype, batch_invariant=True, **{**ROOM, **CUTS["in-chunks"]})
    assert in_company(llm, PROMPT_TOO, 60) == truths(name, dtype, PROMPT_TOO)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_it_some_bits_differ(make_llm: Callable[..., LLM], dtype: str) -> None:
    """What the tests above would see if nothing were done."""
    lone = make_llm("llama", dtype=dtype, **ROOM)
    crowd = make_llm("llama", dtype=dtype, **{**ROOM, **CUTS["together"]})
    assert in_company(crowd, SCORED) != alone(lone, SCORED)


def test_a_seeded_sample_is_the_same_in_any_company(make_llm: Callable[..., LLM]) -> None:
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=5, max_tokens=9, ignore_eos=True, logprobs=3)
    llm = make_llm("llama", batch_invariant=True, **{**ROOM, **CUTS["in-chunks"]})
    assert in_company(llm, params) == alone(llm, params)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("mixtral", "experts"),
        ("bamba", "recurrent layers"),
        ("deepseek-v3", "experts and latent attention"),
        ("gpt-oss", "experts"),
    ],
)
def test_a_model_that_was_not_made_invariant_is_refused(
    make_llm: Callable[..., LLM], name: str, part: str
) -> None:
    with pytest.raises(ValueError, match=f"batch_invariant=True .* has {part}, .* leave it out"):
        make_llm(name, batch_invariant=True)


def test_quantized_layers_are_refused(make_llm: Callable[..., LLM]) -> None:
    with pytest.raises(ValueError, match="batch_invariant.*has quantized layers"):
        make_llm("llama", batch_invariant=True, quantization="fp8")


def test_a_value_that_is_no_flag_is_refused(make_llm: Callable[..., LLM]) -> None:
    wrong: Sequence[Any] = (1, "yes", None)
    for value in wrong:
        with pytest.raises(ValueError, match="batch_invariant"):
            make_llm("llama", batch_invariant=value)
