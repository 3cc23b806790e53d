from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from e2e.truth import Truth

from octavo import LLM, SamplingParams
from octavo.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def llm(make_llm: Callable[..., LLM]) -> LLM:
    return make_llm()


def tokens_of(outputs: list[Any]) -> list[list[int]]:
    return [list(completion.token_ids) for output in outputs for completion in output.outputs]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.2, "min_p": 0.05, "repetition_penalty": 1.2},
        {
            "temperature": 0.9,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.5,
            "logit_bias": {9: 5.0, 11: -100},
        },
        {"temperature": 1.0, "allowed_token_ids": list(range(5, 60))},
    ],
    ids=["plain", "top", "min-p", "penalties", "allowed"],
)
def test_a_seeded_request_gives_the_same_tokens_alone_and_in_a_batch_of_64(
    make_llm: Callable[..., LLM], truth: Callable[[str], Truth], options: dict[str, Any]
) -> None:
    prompts = truth("llama").prompts
    params = [SamplingParams(seed=1000 + i, max_tokens=24, ignore_eos=True, **options) for i in range(64)]
    # Otherwise logits of one row and of many differ by 1.5e-5: one job of thirty draws that near a border.
    options = {"batch_invariant": True}
    together = tokens_of(make_llm(**options).generate(prompts, params, use_tqdm=False))
    chunked = make_llm(**options, max_num_batched_tokens=48)
    assert tokens_of(chunked.generate(prompts, params, use_tqdm=False)) == together
    alone = make_llm(**options)
    for i in (0, 17, 40, 63):
        assert tokens_of(alone.generate(prompts[i], params[i])) == [together[i]]
    assert len({tuple(tokens) for tokens in together}) == 64


def test_seeded_requests_survive_preemption(
    make_llm: Callable[..., LLM], truth: Callable[[str], Truth]
) -> None:
    prompts = truth("llama").prompts
    params = [
        SamplingParams(seed=i, max_tokens=48, ignore_eos=True, repetition_penalty=1.3, frequency_penalty=0.2)
        for i in range(64)
    ]
    roomy = tokens_of(make_llm(batch_invariant=True).generate(prompts, params, use_tqdm=False))
    tight = make_llm(batch_invariant=True, max_model_len=256, num_gpu_blocks_override=40)
    assert tokens_of(tight.generate(prompts, params, use_tqdm=False)) == roomy
    assert tight.llm_engine.core.stats()["preemptions"] > 0


def test_unseeded_jobs_repeat_in_a_fresh_llm_and_vary_within_one(make_llm: Callable[..., LLM]) -> None:
    params = SamplingParams(max_tokens=16, ignore_eos=True)
    first, second = make_llm(seed=3), make_llm(seed=3)
    one = tokens_of(first.generate(["the cat"] * 4, params))
    assert one == tokens_of(second.generate(["the cat"] * 4, params))
    assert len({tuple(tokens) for tokens in one}) == 4
    assert one != tokens_of(first.generate(["the cat"] * 4, params))
    assert one != tokens_of(make_llm(seed=4).generate(["the cat"] * 4, params))


def test_samples_of_a_request_are_those_of_requests_with_seeds_in_a_row(llm: LLM) -> None:
    many = llm.generate("the cat", SamplingParams(n=5, seed=50, max_tokens=12, ignore_eos=True))
    assert [completion.index for completion in many[0].outputs] == list(range(5))
    singles = [SamplingParams(seed=50 + i, max_tokens=12, ignore_eos=True) for i in range(5)]
    assert tokens_of(many) == tokens_of(llm.generate(["the cat"] * 5, singles))


def test_samples_follow_the_models_distribution(llm: LLM, truth: Callable[[str], Truth]) -> None:
    """Chi-square of 128 x 16 draws of one next token against transformers' probabilities."""
    known = truth("llama")
    i = 6
    probabilities = np.exp(known.logprobs[i][len(known.prompts[i]) - 1])
    draws: Counter[int] = Counter()
    for round_ in range(16):
        params = SamplingParams(n=128, seed=round_ * 1000, max_tokens=1, ignore_eos=True)
        draws.update(
            tokens[0] for tokens in tokens_of(llm.generate({"prompt_token_ids": known.prompts[i]}, params))
        )
    total = sum(draws.values())
    common = [t for t in range(len(probabilities)) if probabilities[t] * total >= 10]
    observed = np.array([*(draws[t] for t in common), total - sum(draws[t] for t in common)], dtype=float)
    share = probabilities[common]
    expected = total * np.array([*share, 1 - share.sum()])
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    assert freedom >= 3
    # Wilson-Hilferty: the cube root of chi-square over its freedom is nearly normal; five deviations.
    spread = 2 / (9 * freedom)
    assert ((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5 < 5, (statistic, freedom)


def test_a_bias_a_ban_and_an_allow_list_decide_the_tokens(llm: LLM, truth: Callable[[str], Truth]) -> None:
    known = truth("llama")
    prompt = {"prompt_token_ids": known.prompts[0]}
    greedy = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}

    def run(**options: Any) -> list[int]:
        return tokens_of(llm.generate(prompt, SamplingParams(**greedy, **options)))[0]

    assert run(logit_bias={77: 100.0}) == [77] * 8
    assert set(run(allowed_token_ids=[70, 71, 72])) <= {70, 71, 72}
    first = known.tokens[0][0]
    assert first not in run(logit_bias={first: -100.0})
    assert run(allowed_token_ids=[70], logprobs=0) == [70] * 8


def test_bad_words_do_not_appear(llm: LLM, truth: Callable[[str], Truth]) -> None:
    tokenizer = llm.get_tokenizer()
    params = {"temperature": 0, "max_tokens": 48, "ignore_eos": True}
    plain = llm.generate("the cat sits", SamplingParams(**params))[0].outputs[0]
    word = next(w for t in plain.token_ids if (w := tokenizer.decode([t]).strip()).isalpha() and len(w) > 1)
    assert word in plain.text
    banned = llm.generate("the cat sits", SamplingParams(**params, bad_words=[word]))[0].outputs[0]
    spelled = {tuple(tokenizer.encode(form, add_special_tokens=False)) for form in (word, " " + word)}
    single = {ids[0] for ids in spelled if len(ids) == 1}
    assert single
    assert not single & set(banned.token_ids)


def test_min_tokens_holds_back_every_kind_of_end(llm: LLM, truth: Callable[[str], Truth]) -> None:
    known = truth("llama")
    i = min(
        (i for i in range(64) if known.eos in known.tokens[i]), key=lambda i: known.tokens[i].index(known.eos)
    )
    end = known.tokens[i].index(known.eos)
    params = SamplingParams(
        temperature=0, max_tokens=64, min_tokens=end + 5, stop_token_ids=known.tokens[i][:3]
    )
    completion = llm.generate({"prompt_token_ids": known.prompts[i]}, params)[0].outputs[0]
    assert len(completion.token_ids) >= end + 5
    assert known.eos not in completion.token_ids[: end + 5]


def test_stop_strings_end_the_text_of_a_real_model(llm: LLM, truth: Callable[[str], Truth]) -> None:
    known = truth("llama")
    tokenizer: Tokenizer = llm.get_tokenizer()
    tried = 0
    for i in range(16):
        text = tokenizer.decode(known.tokens[i], skip_special_tokens=True)
        prompt = {"prompt_token_ids": known.prompts[i]}
        # Three characters from the middle: with tokens of one to five characters they cross boundaries.
        stop = text[len(text) // 2 :][:3]
        if "\ufffd" in stop or not stop:
            continue
        tried += 1
        for include in (False, True):
            params = SamplingParams(
                temperature=0, max_tokens=64, ignore_eos=True, stop=stop, include_stop_str_in_output=include
            )
            completion = llm.generate(prompt, params)[0].outputs[0]
            assert completion.text == text[: text.index(stop) + (len(stop) if include else 0)]
            assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    assert tried >= 4
    assert llm.llm_engine.core.stats()["free_blocks"] == llm.llm_engine.core.stats()["total_blocks"]


def test_texts_equal_the_decoding_of_their_tokens(llm: LLM, truth: Callable[[str], Truth]) -> None:
    """A random model's bytes are mostly broken UTF-8; all of it must come out as decode gives it."""
    known = truth("llama")
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    for output in llm.generate(known.prompts, params, use_tqdm=False):
        completion = output.outputs[0]
        assert completion.text == llm.get_tokenizer().decode(completion.token_ids)
