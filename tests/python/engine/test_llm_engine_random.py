"""Random jobs, with what each request must produce known beforehand from a few lines of Python."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from engine.scripted import Scripted

from octavo.sampling_params import RequestOutputKind, SamplingParams

ALPHABET = "abcdef"
NAMES = [char for char in string.ascii_uppercase if char not in ALPHABET]


@dataclass
class Expected:
    unstopped: str
    text: str
    finish_reason: str
    stop_reason: str | None
    kind: RequestOutputKind
    n: int
    seen: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, tuple[str | None, int | str | None]] = field(default_factory=dict)
    aborted: bool = False


def expect(script: str, params: SamplingParams) -> Expected:
    """One token is one character; the script's last character repeats for ever."""
    assert params.max_tokens is not None
    text = (script + script[-1] * params.max_tokens)[: params.max_tokens]
    for end in range(1, len(text) + 1):
        ending = [stop for stop in params.stop or () if text[:end].endswith(stop)]
        if ending and (not params.min_tokens or end > params.min_tokens):
            stop = max(ending, key=len)
            return Expected(text, text[: end - len(stop)], "stop", stop, params.output_kind, params.n)
    return Expected(text, text, "length", None, params.output_kind, params.n)


def draw_params(draw: random.Random) -> SamplingParams:
    most = draw.randint(1, 40)
    return SamplingParams(
        temperature=draw.choice([0.0, 1.0]),
        n=draw.choice([1, 1, 1, 2, 3]),
        max_tokens=most,
        min_tokens=draw.choice([0, 0, draw.randint(0, most)]),
        stop=["".join(draw.choices(ALPHABET, k=draw.randint(1, 3))) for _ in range(draw.randint(0, 2))],
        logprobs=draw.choice([None, None, 2]),
        output_kind=draw.choice(list(RequestOutputKind)),
    )


@pytest.mark.parametrize("seed", range(12))
def test_every_request_of_a_random_job_gets_its_own_text_and_end(
    scripted: Callable[..., Scripted], seed: int
) -> None:
    draw = random.Random(seed)
    scripts = {name: "".join(draw.choices(ALPHABET, k=draw.randint(1, 30))) for name in NAMES}
    world = scripted(
        scripts,
        num_blocks=draw.choice([26, 40, 200]),
        max_num_seqs=draw.choice([4, 16]),
        max_num_batched_tokens=draw.choice([16, 64, 256]),
        enable_prefix_caching=draw.choice([True, False]),
        policy=draw.choice(["fcfs", "priority"]),
    )
    expected: dict[str, Expected] = {}
    for step in range(400):
        if step < 60 and draw.random() < 0.6:
            name, request_id = draw.choice(NAMES), f"r{step}"
            params = draw_params(draw)
            prompt = world.prompt(name + "abc" * draw.randint(0, 10))
            world.engine.add_request(request_id, prompt, params, priority=draw.randint(0, 2))
            expected[request_id] = expect(scripts[name], params)
        alive = world.engine.unfinished_request_ids()
        if alive and draw.random() < 0.05:
            victim = draw.choice(alive)
            expected[victim].aborted = True
            world.engine.abort_request(victim)
        for output in world.engine.step():
            known = expected[output.request_id]
            for completion in output.outputs:
                before = known.seen.get(completion.index, "") if known.kind is RequestOutputKind.DELTA else ""
                known.seen[completion.index] = before + completion.text
                known.reasons[completion.index] = (completion.finish_reason, completion.stop_reason)
        world.core.check_invariants()
        if step > 60 and not world.engine.has_unfinished_requests():
            break
    world.assert_drained()
    assert len(expected) > 20
    for request_id, known in expected.items():
        for index in range(known.n):
            text, reason = known.seen[index], known.reasons[index]
            if known.aborted and reason[0] == "abort":
                assert known.unstopped.startswith(text), request_id
            else:
                assert (text, *reason) == (known.text, known.finish_reason, known.stop_reason), request_id
