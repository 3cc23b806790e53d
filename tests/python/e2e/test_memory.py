from __future__ import annotations

import random
from collections.abc import Callable

from octavo import LLM, SamplingParams


def test_a_shared_prefix_of_2000_tokens_is_computed_once(make_llm: Callable[..., LLM]) -> None:
    draw = random.Random(1)
    prefix = [draw.randrange(4, 512) for _ in range(2000)]
    prompts = [[*prefix, *(draw.randrange(4, 512) for _ in range(8))] for _ in range(32)]
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, detokenize=False)
    llm = make_llm(max_model_len=2048, num_gpu_blocks_override=512)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    stats = llm.llm_engine.core.stats()
    # 2,000 is a whole number of blocks: each prompt's own 8 tokens remain, and nothing is computed twice.
    assert stats["prompt_tokens"] == 2000 + 32 * 8
    assert stats["preemptions"] == 0
    assert sorted(output.num_cached_tokens or 0 for output in outputs) == [0, *[2000] * 31]
    plain = make_llm(max_model_len=2048, num_gpu_blocks_override=512, enable_prefix_caching=False)
    expected = plain.generate(prompts[:3], params, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in outputs[:3]] == [o.outputs[0].token_ids for o in expected]


def test_samples_of_one_prompt_compute_it_once(make_llm: Callable[..., LLM]) -> None:
    draw = random.Random(2)
    prompt = [draw.randrange(4, 512) for _ in range(161)]
    llm = make_llm()
    llm.generate({"prompt_token_ids": prompt}, SamplingParams(n=16, max_tokens=4, ignore_eos=True, seed=1))
    # 160 of the 161 tokens fill ten blocks; the last token is computed by each sample.
    assert llm.llm_engine.core.stats()["prompt_tokens"] == 160 + 16


def test_kv_waste_is_below_4_percent_on_sharegpt_like_lengths(make_llm: Callable[..., LLM]) -> None:
    """Slots of blocks in running requests' tables that hold no token, over many steps of a mixed load."""
    draw = random.Random(3)
    llm = make_llm(
        max_model_len=2048, num_gpu_blocks_override=4096, max_num_seqs=64, max_num_batched_tokens=8192
    )
    engine = llm.llm_engine
    for i in range(96):
        # ShareGPT's conversations: medians of about 150 and 200 tokens, long tails. Scaled outputs keep it
        # short.
        prompt = [draw.randrange(4, 512) for _ in range(min(int(draw.lognormvariate(5.1, 1.0)) + 4, 1500))]
        output = min(int(draw.lognormvariate(3.2, 0.6)) + 2, 64)
        params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True, detokenize=False)
        engine.add_request(str(i), {"prompt_token_ids": prompt}, params)
    allocated = filled = 0
    while engine.has_unfinished_requests():
        engine.step()
        stats = engine.core.stats()
        allocated += stats["kv_slots_allocated"]
        filled += stats["kv_slots_filled"]
    assert allocated > 0
    waste = 1 - filled / allocated
    assert waste < 0.04, f"{waste:.2%}"
