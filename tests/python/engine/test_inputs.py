from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.engine.inputs import InputProcessor, as_prompt_list
from octavo.hf.encoder import DecoderStart
from octavo.media.audio import AudioInput
from octavo.media.log_mel import LogMel
from octavo.prompts import KvRange, KvRetention
from octavo.sampling_params import SamplingParams
from octavo.text.tokenizer import Tokenizer

LIMIT, VOCAB = 32, 512


@pytest.fixture
def inputs(tokenizer: Tokenizer) -> InputProcessor:
    return InputProcessor(tokenizer, max_model_len=LIMIT, vocab_size=VOCAB)


def one(inputs: InputProcessor, prompt: Any, **options: Any) -> list[int]:
    ids: list[int] = inputs.prepare([prompt], [SamplingParams(**options)])[0].token_ids.tolist()
    return ids


def test_every_form_of_prompt_gives_ids(inputs: InputProcessor, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the cat")
    assert one(inputs, "the cat") == ids
    assert one(inputs, {"prompt": "the cat"}) == ids
    assert one(inputs, {"prompt_token_ids": ids}) == ids
    assert one(inputs, {"prompt": "shown", "prompt_token_ids": ids}) == ids
    assert one(inputs, ids) == ids
    assert one(inputs, tuple(ids)) == ids
    for dtype in (np.int32, np.int64, np.uint16):
        assert one(inputs, np.array(ids, dtype=dtype)) == ids
        assert one(inputs, list(np.array(ids, dtype=dtype))) == ids


def test_one_prompt_of_any_form_is_told_from_a_list() -> None:
    assert as_prompt_list("a") == ["a"]
    assert as_prompt_list({"prompt": "a"}) == [{"prompt": "a"}]
    assert as_prompt_list([1, 2]) == [[1, 2]]
    assert as_prompt_list([[1, 2], "a"]) == [[1, 2], "a"]
    assert as_prompt_list([]) == []
    with pytest.raises(TypeError, match="not int"):
        as_prompt_list(5)
    with pytest.raises(TypeError, match="not NoneType"):
        as_prompt_list(None)


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([], ValueError, "prompt is empty"),
        ({"prompt_token_ids": []}, ValueError, "prompt is empty"),
        ({"prompt_token_ids": None}, ValueError, "needs 'prompt'"),
        ({}, ValueError, "needs 'prompt'"),
        ({"prompt": 5}, ValueError, "needs 'prompt'"),
        ({"promt": "x"}, ValueError, "unknown key 'promt'"),
        ({"prompt": "x", "cache_salt": 5}, ValueError, "cache_salt must be a string"),
        ({"prompt": "x", "kv_retention": 80}, ValueError, "kv_retention must be an octavo.KvRetention"),
        (
            {"prompt_token_ids": [1], "kv_retention": KvRetention(ranges=[KvRange(end=2)])},
            ValueError,
            "prompt: kv_retention: end=2 is not valid: the prompt has 1 tokens",
        ),
        (5, TypeError, "not int"),
        (None, TypeError, "not NoneType"),
        (b"bytes", TypeError, "not bytes"),
        ([1, "a"], ValueError, "position 1 is 'a'"),
        ([1, None], ValueError, "position 1 is None"),
        ([1.5, 2], ValueError, r"position 0 is 1\.5"),
        ([True, False], ValueError, "position 0 is True"),
        ([[1, 2]], TypeError, "must be a string, a mapping or a list of token ids"),
        ({"prompt_token_ids": [[1, 2]]}, ValueError, "flat list of integers"),
        ({"prompt_token_ids": [[1, 2], [3]]}, ValueError, "flat list of integers"),
        ({"prompt_token_ids": "12"}, ValueError, "must be a list of integers, not str"),
        ({"prompt_token_ids": 12}, ValueError, "must be a list of integers, not int"),
        (
            [5, -1],
            ValueError,
            r"token id -1 at position 1 is out of range; ids of this model lie in \[0, 512\)",
        ),
        ([5, 6, 512], ValueError, "token id 512 at position 2 is out of range"),
        ([2**31], ValueError, "token id 2147483648 at position 0"),
        ([2**63], ValueError, "at position 0 is out of range"),
        ([2**70], ValueError, "integers"),
        ("bad \ud800", ValueError, "prompt has a lone surrogate"),
    ],
)
def test_malformed_prompts_are_refused(
    inputs: InputProcessor, prompt: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        one(inputs, prompt)


def test_a_text_without_tokens_is_refused(tokenizer: Tokenizer) -> None:
    # This tokenizer adds a BOS token, so that an empty text has one token and is a prompt.
    inputs = InputProcessor(tokenizer, max_model_len=LIMIT, vocab_size=VOCAB)
    assert one(inputs, "") == [tokenizer.bos_token_id]


def test_a_prompt_that_leaves_no_room_is_refused_in_words_that_clients_look_for(
    inputs: InputProcessor,
) -> None:
    assert len(one(inputs, [5] * (LIMIT - 1))) == LIMIT - 1
    words = "maximum context length is 32 tokens. However, your prompt is too long: prompt has 32 tokens"
    with pytest.raises(ValueError, match=words):
        one(inputs, [5] * LIMIT)
    with pytest.raises(ValueError, match=r"prompt is too long: prompt has \d+ characters"):
        one(inputs, "a" * (LIMIT * 256 + 1))


def test_the_prompt_at_fault_is_named_by_its_index(inputs: InputProcessor) -> None:
    with pytest.raises(ValueError, match="prompt 1: token id 900"):
        inputs.prepare(["fine", [900]], [SamplingParams()] * 2)
    with pytest.raises(ValueError, match="prompt 2 is empty"):
        inputs.prepare(["fine", [9], []], [SamplingParams()] * 3)


def test_truncation_keeps_the_end_of_the_prompt(inputs: InputProcessor) -> None:
    ids = list(range(5, 105))
    assert one(inputs, ids, truncate_prompt_tokens=10) == ids[-10:]
    assert one(inputs, ids[:5], truncate_prompt_tokens=10) == ids[:5]
    assert one(inputs, ids, truncate_prompt_tokens=-1, max_tokens=8) == ids[-(LIMIT - 8) :]
    assert one(inputs, ids, truncate_prompt_tokens=-1, max_tokens=None) == ids[-(LIMIT - 1) :]
    with pytest.raises(ValueError, match="truncate_prompt_tokens=32 is not valid: use at most 31"):
        one(inputs, ids, truncate_prompt_tokens=32)


@pytest.fixture
def speech(tokenizer: Tokenizer) -> InputProcessor:
    log_mel = LogMel(rate=16000, seconds=1, bins=20, fft=400, hop=160)
    return InputProcessor(
        tokenizer,
        max_model_len=LIMIT,
        vocab_size=VOCAB,
        start=DecoderStart(token_id=9, prompt=(9, 10)),
        audio=AudioInput(log_mel, 50),
    )


def test_the_prompt_of_a_decoder_is_taken_as_written_behind_its_start(
    speech: InputProcessor, tokenizer: Tokenizer
) -> None:
    media = {"multi_modal_data": {"audio": (np.zeros(1600), 16000)}}
    plain = tokenizer.encode("the cat", add_special_tokens=False)
    assert plain != tokenizer.encode("the cat")  # or this would prove nothing
    assert one(speech, {"prompt": "the cat", **media}) == [9, *plain]
    assert one(speech, {"prompt_token_ids": [], **media}) == [9]
    assert one(speech, {"prompt_token_ids": [5, 9, 6], **media}) == [5, 9, 6]
    assert one(speech, {"prompt_token_ids": [9, *range(20, 26)], **media}, truncate_prompt_tokens=2) == [
        9,
        24,
        25,
    ]
    assert one(speech, media) == one(speech, {"prompt": "", **media}) == [9, 10]
    prompt = speech.prepare([media], [SamplingParams()])[0]
    assert (prompt.text, [item.embeddings for item in prompt.items]) == (None, [50])


def test_only_a_model_of_speech_begins_by_itself(inputs: InputProcessor) -> None:
    with pytest.raises(ValueError, match="prompt needs 'prompt'"):
        one(inputs, {"multi_modal_data": {}})
    with pytest.raises(ValueError, match="multi_modal_data is not valid: this model takes text alone"):
        one(inputs, {"prompt": "the cat", "multi_modal_data": {"audio": (np.zeros(9), 16000)}})
