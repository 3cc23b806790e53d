"""Guessed tokens as the engine above the core sees them: several tokens of a request in one step."""

from __future__ import annotations

from typing import Any

import pytest
from engine.scripted import Scripted

from octavo.config import SchedulerConfig
from octavo.sampling_params import RequestOutputKind, SamplingParams
from octavo.speculation import Speculation
from octavo.text.tokenizer import Tokenizer

LOOKUP = {"max_draft_tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 2}
REPEATING = "abcdabcdabcdabcdabcd"


def run_one(tokenizer: Tokenizer, params: SamplingParams) -> tuple[Scripted, list[Any]]:
    world = Scripted(tokenizer, {"q": REPEATING}, **LOOKUP)
    world.engine.add_request("a", world.prompt("q"), params)
    outputs = []
    while world.engine.has_unfinished_requests():
        outputs.append(world.engine.step())
    world.assert_drained()
    return world, [output for step in outputs for output in step]


def metrics(world: Scripted) -> dict[str, Any]:
    return {m.name.partition(":")[2]: m for m in world.engine.get_metrics()}


def test_tokens_of_one_step_come_in_one_output(tokenizer: Tokenizer) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, output_kind=RequestOutputKind.DELTA, logprobs=1)
    world, outputs = run_one(tokenizer, params)
    assert all(len(output.outputs) == 1 for output in outputs)
    assert "".join(output.outputs[0].text for output in outputs) == REPEATING
    assert max(len(output.outputs[0].token_ids) for output in outputs) == 5
    for output in outputs:
        completion = output.outputs[0]
        assert [next(iter(position)) for position in completion.logprobs] == completion.token_ids
    assert len(outputs) == len(world.runner.rows_of_steps) < 12
    counts = metrics(world)
    drafts = counts["spec_decode_num_drafts"].value
    assert 0 < drafts < 12
    accepted = counts["spec_decode_num_accepted_tokens"].value
    # Every step gives one token and those accepted.
    assert accepted == 20 - len(outputs)
    assert accepted <= counts["spec_decode_num_draft_tokens"].value <= 4 * drafts


def test_a_stop_string_inside_accepted_tokens_ends_the_request_there(tokenizer: Tokenizer) -> None:
    # The last tokens come in one step, of which the core ends the request by its length.
    for most in range(12, 20):
        _, outputs = run_one(tokenizer, SamplingParams(temperature=0, max_tokens=most, stop=["dabcda"]))
        completion = outputs[-1].outputs[0]
        assert (completion.text, completion.finish_reason) == ("abc", "stop")
        assert completion.stop_reason == "dabcda"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (4, "use a mapping"),
        ({"method": "eagle", "num_speculative_tokens": 4}, "use one of ngram"),
        ({"num_speculative_tokens": 4}, "use one of ngram"),
        ({"method": "ngram"}, "num_speculative_tokens"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "from 1 to 63"),
        ({"method": "ngram", "num_speculative_tokens": True}, "from 1 to 63"),
        ({"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 65}, "from 1 to 64"),
        (
            {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_min": 4, "prompt_lookup_max": 3},
            "at most prompt_lookup_max=3",
        ),
        (
            {"method": "ngram", "num_speculative_token": 4},
            "did you mean 'num_speculative_tokens'.*the keys are method, num_speculative_tokens",
        ),
    ],
)
def test_a_bad_configuration_is_refused_with_what_there_is(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"speculative_config.*{words}"):
        SchedulerConfig(speculative_config=given)


def test_one_bound_of_the_lookup_stands_for_both() -> None:
    def parsed(**more: int) -> Speculation:
        given = {"method": "ngram", "num_speculative_tokens": 3, **more}
        return SchedulerConfig(speculative_config=given).speculation

    assert parsed() == Speculation(3, 5, 5)
    assert parsed(prompt_lookup_max=4) == Speculation(3, 4, 4)
    assert parsed(prompt_lookup_min=2) == Speculation(3, 2, 2)
    assert parsed(prompt_lookup_min=2, prompt_lookup_max=4) == Speculation(3, 2, 4)
    assert SchedulerConfig().speculation == Speculation()


def test_a_paused_engine_says_so_instead_of_spinning(tokenizer: Tokenizer) -> None:
    world = Scripted(tokenizer, {"q": "ab", "r": "cd"})
    world.engine.add_request("a", world.prompt("q"), SamplingParams(temperature=0, max_tokens=4))
    world.engine.step()
    world.engine.pause("new_requests")
    world.engine.add_request("b", world.prompt("r"), SamplingParams(temperature=0, max_tokens=4))
    finished = []
    with pytest.raises(RuntimeError, match=r"paused \(mode='new_requests'\) and 1 requests wait"):
        while world.engine.has_unfinished_requests():
            finished += world.engine.step()
    assert [output.request_id for output in finished if output.finished] == ["a"]
    world.engine.pause()
    assert world.engine.paused == "all"
    with pytest.raises(RuntimeError, match="mode='all'"):
        world.engine.step()
    world.engine.resume()
    assert world.engine.paused is None
    assert world.run()["b"].outputs[0].text == "cddd"
    with pytest.raises(ValueError, match="mode='everything' is not valid: use one of new_requests, all"):
        world.engine.pause("everything")
    world.assert_drained()
