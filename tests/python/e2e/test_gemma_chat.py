"""A Gemma conversation: one token for the beginning of the text, and no images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, SamplingParams

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{% if m.content is string %}"
    "{{ m.content | trim }}{% else %}{% for part in m.content %}{% if part.type == 'image' %}"
    "<start_of_image>{% else %}{{ part.text | trim }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.fixture
def llm(tiny_folder: Any, tmp_path: Path) -> LLM:
    """A Gemma whose tokenizer writes a beginning of its own, as the published ones do."""
    folder = Path(shutil.copytree(tiny_folder("gemma3"), tmp_path / "model"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    bos = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [1], "tokens": ["<|endoftext|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return LLM(folder, num_threads=1, max_model_len=256, num_gpu_blocks_override=64)


def test_the_template_s_beginning_of_text_is_the_only_one(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4)
    plain = llm.generate(["the cat"], params, use_tqdm=False)[0]
    assert list(plain.prompt_token_ids or []).count(1) == 1
    chat = llm.chat([{"role": "user", "content": "the cat sits"}], params, use_tqdm=False)[0]
    ids = list(chat.prompt_token_ids or [])
    assert ids[0] == 1
    assert ids.count(1) == 1


def test_an_image_is_refused_by_its_place(llm: LLM) -> None:
    content = [{"type": "text", "text": "what is it"}, {"type": "image", "url": "cat.png"}]
    with pytest.raises(ValueError, match=r"messages\[0\]\.content\[1\] is of type 'image'.*'text' only"):
        llm.chat([{"role": "user", "content": content}])
