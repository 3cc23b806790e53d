from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from text.tokenizer_zoo import ZOO

from octavo.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "the cat",
    " two  spaces ",
    "naïve 你好 🙂",
    "<|im_start|>user\nhi<|im_end|>",
    "",
    "a\n\n\tb",
    "x <tool call> y",
]


def transformers_tokenizer(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": False},
        {"add_bos_token": True, "add_eos_token": True},
        {"bos_token": {"__type": "AddedToken", "content": "<s>", "special": True}},
        {"additional_special_tokens": None, "extra_special_tokens": ["<|im_start|>", "<new>"]},
    ],
    ids=["plain", "bos", "no-bos", "bos-eos", "object", "extra"],
)
def test_ids_and_text_equal_those_of_transformers(
    folder_of: Callable[..., Path], kind: str, config: dict[str, Any]
) -> None:
    folder = folder_of(kind, **config)
    ours, theirs = load_tokenizer(folder), transformers_tokenizer(folder)
    for text in TEXTS:
        for add in (True, False):
            ids = ours.encode(text, add_special_tokens=add)
            assert ids == theirs.encode(text, add_special_tokens=add), (text, add)
            for skip in (True, False):
                assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
                    ids, skip_special_tokens=skip
                )
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert (ours.vocab_size, len(ours)) == (theirs.vocab_size, len(theirs))
    assert sorted(ours.all_special_ids) == sorted(
        i for i, token in theirs.added_tokens_decoder.items() if token.special
    )


def test_a_batch_is_encoded_as_its_texts_are(load_kind: Callable[[str], Tokenizer]) -> None:
    tokenizer = load_kind("byte_level")
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.batch_decode(tokenizer.encode_batch(["the cat", "a dog"])) == ["the cat", "a dog"]


def test_members_of_hugging_face_tokenizers_answer(load_kind: Callable[[str], Tokenizer]) -> None:
    tokenizer = load_kind("byte_level")
    assert tokenizer.convert_ids_to_tokens([0, 1]) == ["<s>", "</s>"]
    assert tokenizer.convert_ids_to_tokens(1) == "</s>"
    assert tokenizer.convert_ids_to_tokens(10**6) is None
    assert tokenizer.convert_tokens_to_ids(["</s>", "nowhere"]) == [1, None]
    assert tokenizer.get_vocab()["</s>"] == 1
    assert tokenizer.bos_token == "<s>"
    assert tokenizer.pad_token is None
    assert tokenizer.pad_token_id is None


def test_token_bytes_are_those_the_token_stands_for(load_kind: Callable[[str], Tokenizer]) -> None:
    tokenizer = load_kind("byte_level")
    ids = tokenizer.encode("é 你", add_special_tokens=False)
    assert b"".join(tokenizer.token_bytes(i) or b"?" for i in ids) == "é 你".encode()
    assert tokenizer.token_bytes(tokenizer.eos_token_id or 0) is None
    assert tokenizer.token_bytes(10**6) == b""
    fallback = load_kind("sentencepiece")
    assert fallback.token_bytes(fallback.convert_tokens_to_ids("<0xE4>")) == b"\xe4"


def test_truncation_and_padding_of_training_do_not_apply(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("byte_level")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<s>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert load_tokenizer(folder).decode(load_tokenizer(folder).encode("the cat sits")) == "the cat sits"


def test_a_lone_surrogate_is_refused_with_its_place(load_kind: Callable[[str], Tokenizer]) -> None:
    with pytest.raises(ValueError, match="text 1 has a lone surrogate"):
        load_kind("byte_level").encode_batch(["fine", "bad \ud800"])
    with pytest.raises(TypeError, match="text 0 must be str, not int"):
        load_kind("byte_level").encode(7)  # type: ignore[arg-type]


def test_a_folder_without_a_tokenizer_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_tokenizer(tmp_path / "nowhere")


def test_damaged_files_are_named(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("byte_level")
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a usable tokenizer"):
        load_tokenizer(folder)


@pytest.mark.parametrize("nested", [False, True])
def test_a_decoder_that_the_library_panics_in_is_not_loaded(
    folder_of: Callable[..., Path], nested: bool
) -> None:
    folder = folder_of("byte_level")
    path = folder / "tokenizer.json"
    strip = {"type": "Strip", "content": " ", "start": 0, "stop": 1}
    content = json.loads(path.read_text(encoding="utf-8"))
    content["decoder"] = {"type": "Sequence", "decoders": [strip]} if nested else strip
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="strips characters at the end of tokens"):
        load_tokenizer(folder)


def test_a_panic_of_the_library_is_an_error(load_kind: Callable[[str], Tokenizer]) -> None:
    class Backend:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return str(tokenizers.decoders.Strip(content=" ", left=0, right=1).decode([""]))

    tokenizer = load_kind("byte_level")
    tokenizer._backend = Backend()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"cannot run this tokenizer \(index out of bounds"):
        tokenizer.decode([1])


def test_another_format_is_converted_by_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "the", "cat"])
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("the cat", add_special_tokens=False)) == "the cat"


def test_loading_imports_neither_torch_nor_transformers(folder_of: Callable[..., Path]) -> None:
    code = (
        "import sys; from octavo.text.tokenizer import load_tokenizer\n"
        f"load_tokenizer({str(folder_of('byte_level'))!r}).encode('the cat')\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
