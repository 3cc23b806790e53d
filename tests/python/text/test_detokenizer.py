from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text.tokenizer_zoo import ZOO

from octavo.text.detokenizer import Detokenizer
from octavo.text.tokenizer import Tokenizer

MODELLED = [kind for kind in ZOO if kind != "wordpiece"]
PROPERTY = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def stream(tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = (), **options: object) -> str:
    detokenizer = Detokenizer(tokenizer, prompt, **options)  # type: ignore[arg-type]
    pushed = [detokenizer.push(token_id) for token_id in ids]
    text = "".join(pushed) + detokenizer.finish()
    assert detokenizer.text == text
    return text


@pytest.mark.parametrize("kind", ZOO)
def test_decoders_of_language_models_are_recognised(load_kind: Callable[[str], Tokenizer], kind: str) -> None:
    assert (load_kind(kind).decoder_model is not None) == (kind in MODELLED)


@pytest.mark.parametrize("kind", MODELLED)
@pytest.mark.parametrize("skip", [True, False])
@PROPERTY
@given(data=st.data())
def test_text_is_the_lossy_decoding_of_the_bytes(
    load_kind: Callable[[str], Tokenizer], kind: str, skip: bool, data: st.DataObject
) -> None:
    tokenizer = load_kind(kind)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 5), max_size=40))
    text = stream(tokenizer, ids, prompt=[5], skip_special_tokens=skip)
    shown = [i for i in ids if not (skip and tokenizer.is_special(i))]
    pieces = [tokenizer.whole_piece(i) for i in shown]
    data_bytes = b"".join(piece if isinstance(piece, bytes) else piece.encode() for piece in pieces)
    if tokenizer.whole_piece(5) and not (skip and tokenizer.is_special(5)):
        assert text == data_bytes.decode(errors="replace")


@pytest.mark.parametrize("kind", MODELLED)
@pytest.mark.parametrize("skip", [True, False])
@PROPERTY
@given(data=st.data())
def test_text_equals_the_tokenizers_own_decoding_where_bytes_are_valid(
    load_kind: Callable[[str], Tokenizer], kind: str, skip: bool, data: st.DataObject
) -> None:
    tokenizer = load_kind(kind)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 5), max_size=40))
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    text = stream(tokenizer, ids, skip_special_tokens=skip)
    if kind == "byte_level" or "\ufffd" not in whole:
        assert text == whole
    for cut in (1, len(ids) // 2):
        before = tokenizer.decode(ids[:cut], skip_special_tokens=skip)
        if "\ufffd" not in whole and "\ufffd" not in before:
            assert stream(tokenizer, ids[cut:], ids[:cut], skip_special_tokens=skip) == whole[len(before) :]


@pytest.mark.parametrize("kind", ZOO)
@PROPERTY
@given(text=st.text(st.sampled_from("the cat, río 你好🙂 é\n<|im_end|>."), max_size=40))
def test_text_survives_the_round_trip_token_by_token(
    load_kind: Callable[[str], Tokenizer], kind: str, text: str
) -> None:
    tokenizer = load_kind(kind)
    ids = tokenizer.encode(text)
    assert stream(tokenizer, ids) == tokenizer.decode(ids)
    prompt = tokenizer.encode("the cat")
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(prompt + ids)
    assert stream(tokenizer, ids, prompt) == whole[len(tokenizer.decode(prompt)) :]


@pytest.mark.parametrize("kind", MODELLED)
def test_a_character_split_over_tokens_is_printed_once_whole(
    load_kind: Callable[[str], Tokenizer], kind: str
) -> None:
    tokenizer = load_kind(kind)
    ids = tokenizer.encode("a🙂b👩‍💻", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, [])
    pushed = [detokenizer.push(token_id) for token_id in ids]
    assert "" in pushed, "no token ends inside a character: the test would prove nothing"
    assert not any("\ufffd" in text for text in pushed)
    assert detokenizer.finish() == ""
    assert detokenizer.text.strip() == "a🙂b👩‍💻"


def test_a_character_cut_off_by_the_end_becomes_one_replacement(
    load_kind: Callable[[str], Tokenizer],
) -> None:
    tokenizer = load_kind("sentencepiece")
    first, second = (tokenizer.convert_tokens_to_ids(token) for token in ("<0xE4>", "<0xBD>"))
    detokenizer = Detokenizer(tokenizer, [])
    assert detokenizer.push(first) == ""
    assert detokenizer.push(second) == ""
    assert detokenizer.finish() == "\ufffd"


def test_an_output_that_completes_the_prompts_character_leaks_no_prompt(
    load_kind: Callable[[str], Tokenizer],
) -> None:
    tokenizer = load_kind("sentencepiece")
    ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "你".encode()]
    assert stream(tokenizer, ids[2:], ids[:2]) == "\ufffd"


def test_the_leading_space_is_stripped_only_where_a_text_begins(
    load_kind: Callable[[str], Tokenizer],
) -> None:
    tokenizer = load_kind("sentencepiece")
    ids = tokenizer.encode("the cat", add_special_tokens=False)
    assert stream(tokenizer, ids) == "the cat"
    assert stream(tokenizer, ids, tokenizer.encode("dog")) == " the cat"
    bos = tokenizer.bos_token_id or 0
    assert stream(tokenizer, ids, [bos]) == "the cat"
    assert stream(tokenizer, ids, [bos], skip_special_tokens=False) == " the cat"


def test_special_tokens_are_printed_when_asked(load_kind: Callable[[str], Tokenizer]) -> None:
    tokenizer = load_kind("byte_level")
    ids = tokenizer.encode("<|im_start|>the cat<|im_end|>", add_special_tokens=False)
    assert stream(tokenizer, ids) == "the cat"
    assert stream(tokenizer, ids, skip_special_tokens=False) == "<|im_start|>the cat<|im_end|>"


def test_adjacent_special_tokens_stand_without_spaces_when_asked(
    load_kind: Callable[[str], Tokenizer],
) -> None:
    tokenizer = load_kind("wordpiece")
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("the", "<|im_start|>", "<|im_end|>", "cat")]
    spaced = stream(tokenizer, ids, skip_special_tokens=False)
    assert spaced == "the <|im_start|> <|im_end|> cat"
    joined = stream(tokenizer, ids, skip_special_tokens=False, spaces_between_special_tokens=False)
    assert joined == "the <|im_start|><|im_end|> cat"


@pytest.mark.parametrize("include", [True, False])
@PROPERTY
@given(data=st.data())
def test_stop_strings_cut_at_the_first_completed_one_for_any_token_boundaries(
    load_kind: Callable[[str], Tokenizer], include: bool, data: st.DataObject
) -> None:
    tokenizer = load_kind("byte_level")
    text = data.draw(st.text(st.sampled_from("abé🙂"), max_size=30))
    stops = data.draw(st.lists(st.text(st.sampled_from("abé🙂"), min_size=1, max_size=4), max_size=4))
    expected, hit = first_stop(text, stops, include)
    # Every character's bytes in single-byte tokens, or as the tokenizer merges them: the answer is the same.
    split = [i for char in text for i in tokenizer.encode(char, add_special_tokens=False)]
    for ids in (tokenizer.encode(text, add_special_tokens=False), split):
        detokenizer = Detokenizer(tokenizer, [], stop=stops, include_stop_str_in_output=include)
        for token_id in ids:
            detokenizer.push(token_id)
            assert expected.startswith(detokenizer.text)
        detokenizer.finish()
        assert (detokenizer.text, detokenizer.stop_hit) == (expected, hit)


def first_stop(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def test_only_what_could_become_a_stop_string_is_held_back(load_kind: Callable[[str], Tokenizer]) -> None:
    tokenizer = load_kind("byte_level")
    detokenizer = Detokenizer(tokenizer, [], stop=["\n\nUser:"])
    shown = []
    for char in "ab\ncd\n\nUs er":
        for token_id in tokenizer.encode(char, add_special_tokens=False):
            shown.append(detokenizer.push(token_id))
    assert shown == ["a", "b", "", "\nc", "d", "", "", "", "", "\n\nUs ", "e", "r"]


def test_stop_strings_wait_for_min_tokens(load_kind: Callable[[str], Tokenizer]) -> None:
    tokenizer = load_kind("byte_level")
    detokenizer = Detokenizer(tokenizer, [], stop=["b"], min_tokens=3)
    for char in "abcba":
        detokenizer.push(tokenizer.encode(char, add_special_tokens=False)[0])
    assert (detokenizer.text, detokenizer.stop_hit) == ("abc", "b")


def test_nothing_is_printed_after_a_stop(load_kind: Callable[[str], Tokenizer]) -> None:
    tokenizer = load_kind("byte_level")
    assert stream(tokenizer, tokenizer.encode("the cat"), stop=["e c"]) == "th"
