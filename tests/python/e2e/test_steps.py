"""Exactness does not depend on how steps are cut: with steps in flight, with guesses, under preemption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from e2e.steps import generate_with_guesses, run_ahead
from e2e.truth import NEW_TOKENS, Truth
from tiny_models import random_prompts

from octavo import LLM, SamplingParams
from octavo.engine import llm as engine_llm
from octavo.plan import Plan

GREEDY = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
# The methods' own guesses are replaced by those of the tests wherever these make some.
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
TIGHT = {"max_model_len": 256, "num_gpu_blocks_override": 40, "max_num_batched_tokens": 128}
MODELS = ("llama", "mistral-window", "qwen2-hybrid", "gemma3", "deepseek-v3")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    """Full attention, a window everywhere, both in one pool, and latents."""
    return str(request.param)


def stats(llm: LLM) -> dict[str, int]:
    return llm.llm_engine.core.stats()


@pytest.mark.parametrize("name", ["llama", "qwen2-hybrid", "deepseek-v3"])
def test_tokens_are_the_same_where_rows_that_share_stand_together(
    make_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shared = random_prompts(3, low=270, high=300, seed=51)
    prompts = [shared[i % 3] + own for i, own in enumerate(random_prompts(21, low=1, high=9, seed=52))]
    apart = tokens_of(make_llm(name).generate(prompts, GREEDY, use_tqdm=False))
    monkeypatch.setattr(engine_llm, "core_options", lambda plan: {"sharing_min_tokens": 1})
    llm = make_llm(name)
    runner: Any = llm.llm_engine.runner
    launch, steps = runner.launch, list[bool]()
    runner.launch = lambda plan: (steps.append(plan.shares), launch(plan))[1]
    assert tokens_of(llm.generate(prompts, GREEDY, use_tqdm=False)) == apart
    assert sum(steps) > 10
    assert_idle(llm)


def tokens_of(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def assert_idle(llm: LLM) -> None:
    llm.llm_engine.core.check_invariants()
    assert stats(llm)["free_blocks"] == stats(llm)["total_blocks"]


@pytest.mark.parametrize("options", [{}, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("depth", [2, 3])
def test_tokens_are_the_same_with_steps_in_flight(
    make_llm: Callable[..., LLM],
    truth: Callable[[str], Truth],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    depth: int,
    options: dict[str, int],
) -> None:
    own = Plan.engine_options
    monkeypatch.setattr(Plan, "engine_options", lambda plan: {**own(plan), "max_steps_in_flight": depth})
    llm = make_llm(model, **options)
    runner = run_ahead(llm, depth)
    known = truth(model)
    assert tokens_of(llm.generate(known.prompts, GREEDY, use_tqdm=False)) == known.tokens
    assert runner.unknown > 1000
    assert not options or stats(llm)["preemptions"] > 0
    assert_idle(llm)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("options", [{}, TIGHT], ids=["roomy", "tight"])
def test_tokens_are_the_same_with_guesses_right_and_wrong(
    make_llm: Callable[..., LLM],
    truth: Callable[[str], Truth],
    model: str,
    options: dict[str, int],
    depth: int,
) -> None:
    llm = make_llm(model, speculative_config=NGRAM, **options)
    if depth > 1:
        run_ahead(llm, depth)
    known = truth(model)
    outputs = generate_with_guesses(llm, known.prompts, [GREEDY] * len(known.prompts), known.tokens)
    assert tokens_of(outputs) == known.tokens
    drafts, accepted = stats(llm)["draft_tokens"], stats(llm)["accepted_tokens"]
    assert accepted > 200
    assert drafts - accepted > 200
    assert not options or stats(llm)["preemptions"] > 0
    assert_idle(llm)


def test_prompt_lookup_takes_fewer_steps_for_the_same_tokens(
    make_llm: Callable[..., LLM], truth: Callable[[str], Truth], model: str
) -> None:
    known = truth(model)
    plain, guessing = make_llm(model), make_llm(model, speculative_config=NGRAM)
    for llm in (plain, guessing):
        for i in range(4):
            assert tokens_of(llm.generate([known.prompts[i]], GREEDY, use_tqdm=False)) == [known.tokens[i]]
    assert stats(guessing)["accepted_tokens"] > 0
    assert stats(guessing)["steps"] == stats(plain)["steps"] - stats(guessing)["accepted_tokens"]
    metrics = {m.name: getattr(m, "value", None) for m in guessing.get_metrics()}
    assert metrics["octavo:spec_decode_num_accepted_tokens"] == stats(guessing)["accepted_tokens"]


def test_seeded_samples_and_their_logprobs_are_the_same_with_guesses(
    make_llm: Callable[..., LLM], truth: Callable[[str], Truth], model: str
) -> None:
    prompts = truth(model).prompts[:32]
    params = [
        SamplingParams(
            seed=i,
            temperature=0.8,
            top_p=0.95,
            frequency_penalty=0.3 * (i % 2),
            min_tokens=8 * (i % 3),
            max_tokens=40,
            logprobs=2,
        )
        for i in range(len(prompts))
    ]
    plain = make_llm(model).generate(prompts, params, use_tqdm=False)
    llm = make_llm(model, speculative_config=NGRAM)
    guessed = generate_with_guesses(llm, prompts, params, tokens_of(plain))
    assert tokens_of(guessed) == tokens_of(plain)
    assert stats(llm)["accepted_tokens"] > 100
    for one, other in zip(plain, guessed):
        assert one.outputs[0].finish_reason == other.outputs[0].finish_reason
        pairs = list(zip(one.outputs[0].logprobs, other.outputs[0].logprobs))
        assert len(pairs) == len(one.outputs[0].token_ids)
        for before, after in pairs:
            token = next(iter(before))
            assert next(iter(after)) == token
            assert after[token].logprob == pytest.approx(before[token].logprob, abs=1e-4)


def test_a_paused_llm_refuses_a_job_at_once(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    llm.llm_engine.pause("new_requests")
    with pytest.raises(RuntimeError, match="paused"):
        llm.generate([[1, 2]], GREEDY)
    llm.llm_engine.resume()
    assert len(tokens_of(llm.generate([[1, 2]], GREEDY))[0]) == NEW_TOKENS


def test_a_model_with_recurrent_layers_refuses_to_guess(make_llm: Callable[..., LLM]) -> None:
    with pytest.raises(ValueError, match=r"speculative_config.*recurrent layers"):
        make_llm("bamba", speculative_config=NGRAM)
