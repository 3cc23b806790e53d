from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine.scripted import Scripted

from octavo.prompts import KvRange, KvRetention
from octavo.sampling_params import RequestOutputKind, SamplingParams

Make = Callable[..., Scripted]


def greedy(**options: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 32, **options})


def test_a_request_runs_to_its_end_token_whose_text_is_hidden(scripted: Make) -> None:
    world = scripted({"q": "hello</s>after"})
    world.engine.add_request("a", world.prompt("q"), greedy(skip_special_tokens=False))
    output = world.run()["a"]
    completion = output.outputs[0]
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("hello", "stop", None)
    assert completion.token_ids[-1] == 1
    assert output.finished
    assert output.metrics is not None
    assert output.metrics.num_generation_tokens == len(completion.token_ids)
    assert output.metrics.first_token_latency is not None
    world.assert_drained()


def test_a_further_end_token_is_named_and_ignore_eos_passes_both(scripted: Make) -> None:
    world = scripted({"q": "hi<|im_end|>x", "r": "hi</s><|im_end|>x"})
    world.engine.add_request("a", world.prompt("q"), greedy())
    world.engine.add_request("b", world.prompt("r"), greedy(ignore_eos=True, max_tokens=6))
    outputs = world.run()
    assert (outputs["a"].outputs[0].text, outputs["a"].outputs[0].stop_reason) == ("hi", 4)
    assert (outputs["b"].outputs[0].finish_reason, len(outputs["b"].outputs[0].token_ids)) == ("length", 6)


@pytest.mark.parametrize("include", [True, False])
def test_a_stop_token_ends_a_request_and_is_named(scripted: Make, include: bool) -> None:
    world = scripted({"q": "ab;cd"})
    semicolon = world.ids(world.tokenizer, ";")[0]
    params = greedy(stop_token_ids=[semicolon], include_stop_str_in_output=include)
    world.engine.add_request("a", world.prompt("q"), params)
    completion = world.run()["a"].outputs[0]
    assert (completion.text, completion.stop_reason) == ("ab;" if include else "ab", semicolon)
    assert completion.token_ids[-1] == semicolon


@pytest.mark.parametrize("kind", list(RequestOutputKind))
@pytest.mark.parametrize("include", [True, False])
def test_a_stop_string_over_token_boundaries_ends_a_request(
    scripted: Make, kind: RequestOutputKind, include: bool
) -> None:
    world = scripted({"q": "one two\nUser: three"})
    params = greedy(stop=["\nUser:", "zzz"], include_stop_str_in_output=include, output_kind=kind)
    world.engine.add_request("a", world.prompt("q"), params)
    texts = []
    while world.engine.has_unfinished_requests():
        for output in world.engine.step():
            texts.append(output.outputs[0].text)
    expected = "one two\nUser:" if include else "one two"
    assert ("".join(texts) if kind is RequestOutputKind.DELTA else texts[-1]) == expected
    if kind is not RequestOutputKind.FINAL_ONLY:
        assert all(expected.startswith(text) or kind is RequestOutputKind.DELTA for text in texts)
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", "\nUser:")
    # Nothing was generated after the stop: seven of the script's characters were never asked for.
    assert output.metrics is not None
    assert output.metrics.num_generation_tokens == len("one two\nUser:")
    world.assert_drained()


def test_text_held_back_for_a_stop_string_is_given_out_at_the_end(scripted: Make) -> None:
    world = scripted({"q": "ab\nUs"})
    world.engine.add_request("a", world.prompt("q"), greedy(stop="\nUser:", max_tokens=5))
    assert world.run()["a"].outputs[0].text == "ab\nUs"


def test_a_stop_string_completed_by_the_last_token_counts_as_a_stop(scripted: Make) -> None:
    world = scripted({"q": "abcd"})
    world.engine.add_request("a", world.prompt("q"), greedy(stop="cd", max_tokens=4))
    completion = world.run()["a"].outputs[0]
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("ab", "stop", "cd")
    world.assert_drained()


def test_deltas_add_up_to_the_cumulative_and_final_output(scripted: Make) -> None:
    world = scripted({"q": "naïve 🙂 text</s>"})
    seen: dict[str, list[Any]] = {"delta": [], "cumulative": [], "final_only": []}
    for kind in RequestOutputKind:
        world.engine.add_request(kind.value, world.prompt("q"), greedy(output_kind=kind))
    while world.engine.has_unfinished_requests():
        for output in world.engine.step():
            seen[output.request_id].append(output.outputs[0])
    assert "".join(c.text for c in seen["delta"]) == seen["cumulative"][-1].text == "naïve 🙂 text"
    assert not any("\ufffd" in c.text for c in seen["delta"])
    assert [t for c in seen["delta"] for t in c.token_ids] == seen["final_only"][0].token_ids
    assert len(seen["final_only"]) == 1
    assert len(seen["delta"]) == len(seen["cumulative"]) > 4


def test_samples_of_one_request_share_its_prompt(scripted: Make) -> None:
    world = scripted({"q": "abc</s>"})
    prompt = {"prompt_token_ids": world.prompt("q")["prompt_token_ids"] + [9] * 39}
    world.engine.add_request("a", prompt, greedy(n=3, output_kind=RequestOutputKind.FINAL_ONLY))
    output = world.run()["a"]
    assert [completion.index for completion in output.outputs] == [0, 1, 2]
    assert output.finished
    # 40 tokens once, then the last block's worth for each of the others, then three steps of three, and one
    # more where a step is launched before the end token of the one before is known.
    assert world.runner.tokens_computed <= 40 + 2 * 4 + 3 * (2 + world.runner.depth)
    world.assert_drained()


def test_samples_of_one_request_arrive_in_one_output_a_step(scripted: Make) -> None:
    world = scripted({"q": "abc</s>"})
    world.engine.add_request("a", world.prompt("q"), greedy(n=2, output_kind=RequestOutputKind.DELTA))
    outputs = world.engine.step()
    assert [[completion.index for completion in output.outputs] for output in outputs] == [[0, 1]]
    assert not outputs[0].finished


def test_log_probabilities_name_the_sampled_token_first(scripted: Make) -> None:
    world = scripted({"q": "ab</s>"})
    world.engine.add_request("a", world.prompt("q"), greedy(logprobs=2))
    world.engine.add_request("b", world.prompt("q"), greedy(logprobs=0))
    world.engine.add_request("c", world.prompt("q"), greedy())
    outputs = world.run()
    completion = outputs["a"].outputs[0]
    assert completion.logprobs is not None
    assert [next(iter(position)) for position in completion.logprobs] == list(completion.token_ids)
    first = completion.logprobs[0]
    assert [entry.decoded_token for entry in first.values()][0] == "a"
    assert [(entry.logprob, entry.rank) for entry in first.values()] == [(-1.0, 1), (-2.0, 2)]
    assert completion.cumulative_logprob == -3.0
    zero = outputs["b"].outputs[0].logprobs
    assert zero is not None
    assert [len(position) for position in zero] == [1, 1, 1]
    assert outputs["c"].outputs[0].logprobs is None
    assert outputs["c"].outputs[0].cumulative_logprob is None


def test_prompt_log_probabilities_cover_the_prompt_but_its_first_token(scripted: Make) -> None:
    world = scripted({"q": "ab</s>"}, max_num_batched_tokens=16)
    prompt = world.prompt("q" + "x" * 39)
    world.engine.add_request("plain", prompt, greedy())
    world.run()
    world.engine.add_request("a", prompt, greedy(prompt_logprobs=1, n=2))
    output = world.run()["a"]
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    ids = [next(iter(position)) for position in output.prompt_logprobs[1:] if position is not None]
    assert ids == prompt["prompt_token_ids"][1:]


def test_cached_prompt_tokens_are_reported(scripted: Make) -> None:
    world = scripted()
    prompt = world.prompt("q" + "x" * 19)
    world.engine.add_request("a", prompt, greedy(max_tokens=1))
    assert world.run()["a"].num_cached_tokens == 0
    world.engine.add_request("b", prompt, greedy(max_tokens=1))
    assert (world.run()["b"].num_cached_tokens or 0) >= 4
    assert world.engine.reset_prefix_cache()
    world.engine.add_request("c", prompt, greedy(max_tokens=1))
    assert world.run()["c"].num_cached_tokens == 0


def test_salted_prompts_share_no_prefix(scripted: Make) -> None:
    world = scripted()
    ids = world.prompt("q" + "x" * 19)["prompt_token_ids"]
    for salt, expected in (("one", False), ("two", False), ("one", True)):
        world.engine.add_request("a", {"prompt_token_ids": ids, "cache_salt": salt}, greedy(max_tokens=1))
        assert bool(world.run()["a"].num_cached_tokens) == expected


def test_what_a_prompt_asks_to_keep_stays_cached_under_pressure(scripted: Make) -> None:
    world = scripted()
    ids = world.prompt("q" + "x" * 19)["prompt_token_ids"]
    for kept in (False, True):
        wish = KvRetention(ranges=[KvRange(priority=100)]) if kept else None
        world.engine.add_request("a", {"prompt_token_ids": ids, "kv_retention": wish}, greedy(max_tokens=1))
        world.run()
        blocks = world.core.stats()["total_blocks"]
        for i in range(blocks):  # each leaves a block or more of its own behind
            world.engine.add_request("b", [10 + i % 250, 11 + i // 250] * 8, greedy(max_tokens=1))
            world.run()
        world.engine.add_request("a", {"prompt_token_ids": ids}, greedy(max_tokens=1))
        assert bool(world.run()["a"].num_cached_tokens) == kept


def test_a_row_that_cannot_be_sampled_fails_alone(scripted: Make) -> None:
    world = scripted({"q": "fine</s>", "z": "bad"})
    world.runner.bad_requests.add(world.first(world.tokenizer, "z"))
    world.engine.add_request("good", world.prompt("q"), greedy())
    world.engine.add_request("bad", world.prompt("z"), greedy())
    outputs = world.run()
    assert outputs["good"].outputs[0].text == "fine"
    assert outputs["bad"].outputs[0].finish_reason == "error"
    assert "NaN" in str(outputs["bad"].outputs[0].stop_reason)
    assert outputs["bad"].finished
    world.assert_drained()


def test_a_failing_step_ends_its_requests_and_the_engine_goes_on(
    scripted: Make, caplog: pytest.LogCaptureFixture
) -> None:
    world = scripted({"q": "fine</s>"})

    def fail() -> None:
        raise MemoryError("no memory for the logits")

    world.runner.before_step = fail
    world.engine.add_request("a", world.prompt("q"), greedy())
    completion = world.run()["a"].outputs[0]
    assert (completion.finish_reason, completion.stop_reason) == (
        "error",
        "MemoryError: no memory for the logits",
    )
    assert "a step of 1 requests failed" in caplog.text
    world.assert_drained()
    world.runner.before_step = lambda: None
    world.engine.add_request("a", world.prompt("q"), greedy())
    assert world.run()["a"].outputs[0].text == "fine"


def test_a_step_that_fails_while_the_next_one_runs_takes_it_along(scripted: Make) -> None:
    world = scripted({"q": "a long answer", "r": "fine</s>"})
    world.engine.add_request("a", world.prompt("q"), greedy())
    world.engine.step()
    computed = world.runner.step

    def fail(plan: Any) -> Any:
        computed(plan)
        raise RuntimeError("device lost")

    world.runner.step = fail  # type: ignore[method-assign]
    world.engine.add_request("b", world.prompt("r"), greedy())
    outputs = world.run()
    world.runner.step = computed  # type: ignore[method-assign]
    assert {output.outputs[0].stop_reason for output in outputs.values()} == {"RuntimeError: device lost"}
    world.assert_drained()
    world.engine.add_request("b", world.prompt("r"), greedy())
    assert world.run()["b"].outputs[0].text == "fine"


def test_a_device_is_given_its_next_step_before_the_last_one_is_read(scripted: Make) -> None:
    world = scripted({"q": "a long answer"}, max_draft_tokens=0, prompt_lookup_min=0, prompt_lookup_max=0)
    world.engine.add_request("a", world.prompt("q"), greedy(max_tokens=9))
    launched: list[int] = []
    world.runner.before_step = lambda: launched.append(len(world.runner.rows_of_steps))
    world.run()
    # How many steps had run at each launch.
    assert launched == [max(i - world.runner.depth + 1, 0) for i in range(9)]


def test_an_interrupt_inside_a_step_leaves_the_engine_usable(scripted: Make) -> None:
    world = scripted({"q": "fine</s>"})

    def interrupt() -> None:
        raise KeyboardInterrupt

    world.runner.before_step = interrupt
    world.engine.add_request("a", world.prompt("q"), greedy())
    with pytest.raises(KeyboardInterrupt):
        world.engine.step()
    world.runner.before_step = lambda: None
    assert world.run()["a"].outputs[0].finish_reason == "error"
    world.assert_drained()


def test_aborted_requests_free_their_blocks_and_say_so(scripted: Make) -> None:
    world = scripted({"q": "a long answer"})
    for name in ("a", "b", "c"):
        world.engine.add_request(name, world.prompt("q"), greedy(n=2))
    world.engine.step()
    world.engine.abort_request(["a", "unknown"])
    world.engine.abort_request("c")
    world.engine.abort_request("c")
    outputs = world.run()
    assert {output.outputs[0].finish_reason for name, output in outputs.items() if name != "b"} == {"abort"}
    assert outputs["b"].outputs[0].finish_reason == "length"
    world.assert_drained()


def test_a_refused_request_changes_nothing(scripted: Make) -> None:
    world = scripted()
    world.engine.add_request("a", world.prompt("q"), greedy(max_tokens=2))
    bad: list[tuple[Any, SamplingParams, type[Exception], str]] = [
        (world.prompt("q"), greedy(stop_token_ids=[512]), ValueError, "stop_token_ids"),
        (world.prompt("q"), greedy(logit_bias={512: 1}), ValueError, "logit_bias"),
        (world.prompt("q"), greedy(allowed_token_ids=[5, 9999]), ValueError, "allowed_token_ids"),
        (world.prompt("q"), greedy(logprobs=21), ValueError, "logprobs=21 .* at most 20"),
        (world.prompt("q"), greedy(prompt_logprobs=-1), ValueError, "prompt_logprobs=-1 .* at most 20"),
        (world.prompt("q"), {"temperature": 0}, TypeError, "must be SamplingParams"),  # type: ignore[list-item]
    ]
    for prompt, params, error, message in bad:
        with pytest.raises(error, match=message):
            world.engine.add_request("b", prompt, params)
        assert world.engine.unfinished_request_ids() == ["a"]
        assert world.core.num_waiting + world.core.num_running == 1
    changed = greedy()
    changed.temperature = float("nan")
    with pytest.raises(ValueError, match="temperature=nan"):
        world.engine.add_request("b", world.prompt("q"), changed)
    with pytest.raises(ValueError, match="request_id='a' is in use"):
        world.engine.add_request("a", world.prompt("q"), greedy())
    with pytest.raises(ValueError, match="priority='high'"):
        world.engine.add_request("b", world.prompt("q"), greedy(), priority="high")  # type: ignore[arg-type]
    assert world.run()["a"].finished
    world.assert_drained()


def test_parameters_changed_after_adding_have_no_effect(scripted: Make) -> None:
    world = scripted({"q": "abcdef"})
    params = greedy(max_tokens=3)
    world.engine.add_request("a", world.prompt("q"), params)
    params.max_tokens, params.output_kind = 1, RequestOutputKind.DELTA
    assert world.run()["a"].outputs[0].text == "abc"


def test_max_tokens_none_fills_the_context(scripted: Make) -> None:
    world = scripted(max_model_len=40)
    world.engine.add_request("a", world.prompt("q"), greedy(max_tokens=None, detokenize=False))
    completion = world.run()["a"].outputs[0]
    assert len(completion.token_ids) == 39
    assert (completion.text, completion.finish_reason) == ("", "length")


def test_an_engine_without_a_tokenizer_takes_and_gives_ids() -> None:
    world = Scripted(None, {})
    world.engine.add_request("a", [5, 6], greedy(max_tokens=3, logprobs=1))
    completion = world.run()["a"].outputs[0]
    assert (list(completion.token_ids), completion.text) == ([7, 7, 7], "")
    with pytest.raises(ValueError, match="has no tokenizer"):
        world.engine.add_request("b", "text", greedy())
    with pytest.raises(ValueError, match="bad_words='x' is not valid: it needs a tokenizer"):
        world.engine.add_request("b", [5], greedy(bad_words=["x"]))


def test_metrics_count_what_happened(scripted: Make) -> None:
    world = scripted({"q": "ab</s>"})
    for name in ("a", "b"):
        world.engine.add_request(name, world.prompt("q"), greedy())
    world.run()
    metrics = {(m.name, m.labels.get("finished_reason")): m for m in world.engine.get_metrics()}
    assert metrics["octavo:request_success", "stop"].value == 2  # type: ignore[attr-defined]
    assert metrics["octavo:generation_tokens", None].value == 6  # type: ignore[attr-defined]
    assert metrics["octavo:num_requests_running", None].value == 0  # type: ignore[attr-defined]
    latency = metrics["octavo:e2e_request_latency_seconds", None]
    assert (latency.count, latency.buckets["+Inf"]) == (2, 2)  # type: ignore[attr-defined]


def test_unseeded_requests_differ_and_engines_repeat_themselves(scripted: Make) -> None:
    def seeds(world: Scripted) -> list[int]:
        translate = world.engine._params.translate
        return [translate(SamplingParams(), prompt=[5], index=i).seed for i in range(4)]

    first, second = seeds(scripted()), seeds(scripted())
    assert first == second
    assert len(set(first)) == 4
    translate = scripted().engine._params.translate
    assert [translate(SamplingParams(seed=7), prompt=[5], index=i).seed for i in range(3)] == [7, 8, 9]
    assert translate(SamplingParams(seed=-2), prompt=[5], index=0).seed == 2**64 - 2


def test_bad_words_are_banned_with_and_without_a_space_before(scripted: Make) -> None:
    world = scripted()
    native = world.engine._params.translate(SamplingParams(bad_words=["x"]), prompt=[5], index=0)
    assert native.bad_words[0] == world.ids(world.tokenizer, "x")
