from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from text.tokenizer_zoo import save

from octavo.text.chat_template import MAX_OUTPUT_CHARS, MAX_TEMPLATE_CHARS, ChatTemplate
from octavo.text.tokenizer import Tokenizer, load_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content | trim }}"
    "{% else %}{% for part in m.content %}<{{ part.text }}>{% endfor %}{% endif %}{% endfor %}"
)
TOOLS = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}{% for call in m.tool_calls %}"
    "{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}"
    "{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
)
HELPERS = (
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}"
    "{% generation %}!{% endgeneration %}{% endfor %}{{ {'a': '<é>'} | tojson(indent=2) }}"
    "{%- set ns = namespace(n=0) %}{% set ns.n = 3 %}{{ ns.n }}{{ 'ab' * 2 }}{{ messages[-1].content[:2] }}"
)
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what is a block? "},
    {"role": "assistant", "content": "sixteen tokens"},
]


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    "template", [CHATML, PARTS, HELPERS, TOOLS], ids=["chatml", "parts", "helpers", "tools"]
)
@pytest.mark.parametrize("generation", [True, False])
def test_text_and_ids_equal_those_of_transformers(tmp_path: Path, template: str, generation: bool) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save(tmp_path, "byte_level")
    (folder / "chat_template.jinja").write_text(template)
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(str(folder))
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    for chat in (CHAT, CHAT[:2], user("naïve <b>")):
        options = {"add_generation_prompt": generation, "tools": tools}
        text = ours.apply_chat_template(chat, tokenize=False, **options)
        assert text == theirs.apply_chat_template(chat, tokenize=False, **options)
        assert ours.apply_chat_template(chat, **options) == theirs.apply_chat_template(
            chat, return_dict=False, **options
        )


@pytest.mark.parametrize("template", [CHATML, PARTS], ids=["keeps-spaces", "trims"])
def test_the_final_message_is_continued_as_in_transformers(tmp_path: Path, template: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save(tmp_path, "byte_level")
    (folder / "chat_template.jinja").write_text(template)
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(str(folder))
    options: dict[str, Any] = {
        "continue_final_message": True,
        "add_generation_prompt": False,
        "tokenize": False,
    }
    for ending in ("sixteen", "sixteen "):
        chat = [*CHAT[:2], {"role": "assistant", "content": ending}]
        assert ours.apply_chat_template(chat, **options) == theirs.apply_chat_template(chat, **options)


def test_continuing_needs_text_and_no_generation_prompt() -> None:
    template = ChatTemplate(CHATML)
    with pytest.raises(ValueError, match="continue_final_message=True needs add_generation_prompt=False"):
        template.render(CHAT, continue_final_message=True)
    with pytest.raises(ValueError, match="needs a last message with text"):
        template.render([{"role": "user"}], continue_final_message=True, add_generation_prompt=False)
    with pytest.raises(ValueError, match="does not print the last message"):
        ChatTemplate("fixed").render(CHAT, continue_final_message=True, add_generation_prompt=False)


def test_parts_reach_templates_that_loop_over_them_and_are_joined_for_others() -> None:
    parts = [{"type": "text", "text": "one"}, {"text": "two"}, "three"]
    assert ChatTemplate(CHATML).render(user(parts)).startswith("<|im_start|>user\none\ntwo\nthree<|im_end|>")
    assert ChatTemplate(PARTS).render(user(parts)) == "[user]<one><two><three>"


def test_template_variables_are_passed_and_special_tokens_known(
    load_kind: Callable[[str], Tokenizer],
) -> None:
    tokenizer = load_kind("byte_level")
    text = tokenizer.apply_chat_template(
        user("x"), chat_template="{{ bos_token }}{{ eos_token }}{{ thinking }}", tokenize=False, thinking=True
    )
    assert text == "<s></s>True"


def test_tool_call_arguments_in_json_text_become_objects() -> None:
    call = {"function": {"name": "look", "arguments": '{"at": 1}'}}
    assert ChatTemplate(TOOLS).render([{"role": "assistant", "content": None, "tool_calls": [call]}]) == (
        'look({"at": 1})'
    )
    call = {"function": {"name": "look", "arguments": "{at"}}
    with pytest.raises(ValueError, match=r"tool_calls\[0\]\.function\.arguments is not valid JSON"):
        ChatTemplate(TOOLS).render([{"role": "assistant", "tool_calls": [call]}])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ("hello", "must be a list"),
        ({"role": "user"}, "must be a list"),
        (["hello"], r"messages\[0\] must be an object"),
        ([{"content": "x"}], r"messages\[0\]\.role=None"),
        ([{"role": 3, "content": "x"}], r"messages\[0\]\.role=3"),
        (user(5), r"messages\[0\]\.content must be a string or a list"),
        (user([{"type": "image_url", "image_url": {"url": "x"}}]), "takes parts of type 'text' only"),
        (user([{"type": "text", "text": 5}]), r"messages\[0\]\.content\[0\]\.text must be a string"),
        (user([5]), "is of type None"),
    ],
)
def test_malformed_messages_are_refused_by_place(messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(CHATML).render(messages)


@pytest.mark.parametrize(
    "step",
    [
        "n.x ~ n.x",
        "n.x + n.x",
        "[n.x, n.x] | join",
        "''.join([n.x, n.x])",
        "n.x.replace('a', 'aa')",
        "n.x | replace('a', 'aa')",
        "'%s%s' % (n.x, n.x)",
        "'%s%s' | format(n.x, n.x)",
        "'{}{}'.format(n.x, n.x)",
    ],
)
def test_a_text_that_doubles_step_by_step_stops_at_the_limit(step: str) -> None:
    source = "{% set n = namespace(x='aa') %}{% for i in range(28) %}{% set n.x = STEP %}{% endfor %}"
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="beyond 4194304 elements"):
            ChatTemplate(source.replace("STEP", step)).render(CHAT)
        assert tracemalloc.get_traced_memory()[1] < 16 * MAX_OUTPUT_CHARS
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("show", ["{{ n.x }}", "{{ n.x | tojson }}", "{{ n.x | string }}", "{{ '' ~ n.x }}"])
def test_a_list_that_holds_itself_many_times_is_not_printed(show: str) -> None:
    source = "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    with pytest.raises(ValueError, match="beyond 4194304 elements"):
        ChatTemplate(source + show).render(CHAT)


def test_a_block_that_triples_stops_at_the_limit() -> None:
    block = "{% set b %}{{ n.x }}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = b %}"
    source = "{% set n = namespace(x='aa') %}{% for i in range(20) %}" + block + "{% endfor %}"
    with pytest.raises(ValueError, match="beyond 4194304 elements"):
        ChatTemplate(source).render(CHAT)


def test_joins_and_replacements_within_the_limit_are_jinjas_own() -> None:
    source = "{{ messages | join(', ', attribute='role') }} {{ [1, 'b'] | join }} {{ 1 ~ 'a' ~ none }}"
    source += " {{ 'aaa' | replace('a', 'b', 2) }} {{ 'aaa'.replace('a', 'b', 1) }} "
    source += "{{ '-'.join(['x', 'y']) }}"
    source += " {{ '%s=%s' | format('k', 1) }} {{ [1] + [2] }}"
    expected = "system, user 1b 1aNone bba baa x-y k=1 [1, 2]"
    assert ChatTemplate(source).render([{"role": "system"}, {"role": "user"}]) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% break %}", "cannot be compiled: SyntaxError"),
        ("{% for a in [1] %}" * 120 + "{% endfor %}" * 120, "cannot be compiled: IndentationError"),
        ("{{ 'x'.expandtabs(4000) }}", "the method expandtabs"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].nothing.more }}", "lack: .* has no attribute 'nothing'"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "forbids"),
        ("{{ messages.append(1) }}", "forbids"),
        ("{{ 'x' * 1000000000 }}", "repetition beyond"),
        ("{{ 1000000000 * [1] }}", "repetition beyond"),
        ("{{ 10 ** 10 ** 10 }}", "power of large numbers"),
        ("{{ '%1000000000d' % 1 }}", "width of five or more"),
        ("{{ '%1000000000d' | format(1) }}", "width of five or more"),
        ("{{ '{:1000000000}'.format(1) }}", "width of five or more"),
        ("{{ '{:{}}'.format(1, 1000000000) }}", "width beyond"),
        ("{{ 'x'.center(1000000000) }}", "width beyond"),
        ("{{ 'x' | center(1000000000) }}", "width beyond"),
        ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}" + "x" * 99 + "{% endfor %}", f"exceeds {MAX_OUTPUT_CHARS}"),
        ("{% for m in messages %}", "line 1"),
        ("{{ unknown_function() }}", "lack: 'unknown_function' is undefined"),
        (" " * (MAX_TEMPLATE_CHARS + 1), "exceeds the limit"),
    ],
)
def test_template_errors_become_value_errors_with_their_words(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(template).render(CHAT)


def test_a_template_that_never_ends_is_stopped() -> None:
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    before = threading.active_count()
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"longer than 0\.2 s"):
        ChatTemplate(loops, max_seconds=0.2).render(CHAT)
    assert time.monotonic() - start < 3
    assert threading.active_count() == before


def test_messages_are_not_changed_and_foreign_objects_not_exposed() -> None:
    class Foreign:
        def harm(self) -> None:
            raise AssertionError("a template called a foreign method")

    chat = [{"role": "user", "content": "x", "extra": Foreign()}]
    assert ChatTemplate("{{ messages[0].extra }}").render(chat) == "<Foreign>"
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ValueError, match="deeper than 64"):
        ChatTemplate(CHATML).render(CHAT, tools=deep)


def test_a_folder_without_a_template_says_so(load_kind: Callable[[str], Tokenizer]) -> None:
    with pytest.raises(ValueError, match="has no chat template"):
        load_kind("byte_level").apply_chat_template(CHAT)


def test_the_template_is_found_in_each_of_its_places(folder_of: Callable[..., Path]) -> None:
    assert load_tokenizer(folder_of("byte_level", chat_template="A")).chat_template == "A"
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert load_tokenizer(folder_of("byte_level", chat_template=named)).chat_template == "D"
    folder = folder_of("byte_level", chat_template="A")
    (folder / "chat_template.jinja").write_text("B")
    assert load_tokenizer(folder).chat_template == "B"
