"""The text that `tiny` is trained on: what is held out for measuring must stay held out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
MAX_ANSWER_CHARS = 220


@pytest.fixture(scope="module")
def wordings() -> Iterator[ModuleType]:
    """The module examples/tiny/wordings.py, importable for these tests alone."""
    folder = str(ROOT / "examples" / "tiny")
    sys.path.insert(0, folder)
    try:
        import wordings as module

        yield module
    finally:
        sys.path.remove(folder)
        sys.modules.pop("wordings", None)


def test_no_held_question_is_a_trained_frame_around_a_subject(wordings: ModuleType) -> None:
    frames = [frame for line in wordings.load_wordings().frames for frame in line]
    facts = wordings.load_facts()
    trained = {
        wordings.bare(frame.replace(wordings.SUBJECT, article + subject))
        for fact in facts
        for subject in fact.subjects
        for article in ("", "a ", "the ")
        for frame in frames
    }
    assert [text for fact in facts for text in fact.held if wordings.bare(text) in trained] == []


def test_no_held_frame_is_a_trained_one(wordings: ModuleType) -> None:
    loaded = wordings.load_wordings()
    trained = {wordings.bare(frame) for line in loaded.frames for frame in line}
    assert [frame for frame in loaded.held_frames if wordings.bare(frame) in trained] == []


def test_a_pattern_stands_for_all_its_sentences(wordings: ModuleType) -> None:
    sentences = wordings.expand("how {do I|to} {use {it|this}|run}{ now|}")
    assert len(sentences) == 12
    assert {"how do I use this now", "how to run"} <= set(sentences)


def test_answers_are_short_plain_text_and_all_different(wordings: ModuleType) -> None:
    answers = [fact.answer for fact in wordings.load_facts()]
    assert len(set(answers)) == len(answers)
    assert [answer for answer in answers if len(answer) > MAX_ANSWER_CHARS or not answer.isascii()] == []


def test_the_model_states_its_own_shape(wordings: ModuleType) -> None:
    config = json.loads((ROOT / "python/octavo/assets/tiny/config.json").read_text())
    answer = next(fact.answer for fact in wordings.load_facts() if fact.name == "size")
    assert f"{config['num_hidden_layers']} Llama layers of width {config['hidden_size']}" in answer
    assert f"a vocabulary of {config['vocab_size']} tokens" in answer
