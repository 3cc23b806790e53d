"""Chat templates: Jinja programs that come with a model, compiled once and rendered under limits.

A template is a program from outside, and the messages it works on come from further outside. It runs in
Jinja's immutable sandbox (template_sandbox.py), in a thread of its own with a deadline and a cap on its
output.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.nodes

from octavo.errors import ModelError, file_failure
from octavo.hf.reader import read_json
from octavo.text.messages import normalise_messages, plain_data
from octavo.text.template_sandbox import MAX_OUTPUT_CHARS, Sandbox

MAX_TEMPLATE_CHARS = 256 << 10
MAX_SECONDS = 5.0
# Marks the place where the final message ends; private-use characters occur in no real message.
_END_OF_MESSAGE = "\ue0f1end of message\ue0f2"


@lru_cache(maxsize=32)
def _compile(source: str) -> tuple[jinja2.Template, bool]:
    """The compiled template, and whether it takes a message's content as a list of parts."""
    if len(source) > MAX_TEMPLATE_CHARS:
        raise ValueError(
            f"chat template of {len(source)} characters exceeds the limit of {MAX_TEMPLATE_CHARS}"
        )
    environment = Sandbox()
    try:
        tree = environment.parse(source)
        return environment.from_string(source), _loops_over_content(tree)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"chat template, line {error.lineno}: {error.message}") from error
    except RecursionError as error:
        raise ValueError("chat template is nested too deeply") from error
    except Exception as error:  # Python compiles what Jinja makes of it, under limits of its own.
        raise ValueError(f"chat template cannot be compiled: {type(error).__name__}: {error}") from error


def _loops_over_content(tree: jinja2.nodes.Template) -> bool:
    names = {"content"}

    def is_content(node: jinja2.nodes.Node | None) -> bool:
        while isinstance(node, jinja2.nodes.Filter):
            node = node.node
        if isinstance(node, jinja2.nodes.Getattr):
            return node.attr == "content"
        if isinstance(node, jinja2.nodes.Getitem):
            return isinstance(node.arg, jinja2.nodes.Const) and node.arg.value == "content"
        return isinstance(node, jinja2.nodes.Name) and node.name in names

    for assign in tree.find_all(jinja2.nodes.Assign):
        if isinstance(assign.target, jinja2.nodes.Name) and is_content(assign.node):
            names.add(assign.target.name)
    return any(is_content(loop.iter) for loop in tree.find_all(jinja2.nodes.For))


class ChatTemplate:
    """A compiled template. Rendering is safe from several threads.

    Raises ValueError where the source is no valid template.
    """

    def __init__(self, source: str, *, max_seconds: float = MAX_SECONDS) -> None:
        self._template, self._takes_parts = _compile(source)
        self._max_seconds = max_seconds

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text of a conversation. Raises ValueError with the template's own words."""
        if continue_final_message and add_generation_prompt:
            raise ValueError(
                "continue_final_message=True needs add_generation_prompt=False: only one can end the prompt"
            )
        chat = normalise_messages(messages, as_parts=self._takes_parts)
        if continue_final_message:
            _mark_end(chat)
        values = {
            **plain_data(variables or {}),
            "messages": chat,
            "tools": plain_data(tools),
            "documents": plain_data(documents),
            "add_generation_prompt": add_generation_prompt,
        }
        text = _render(self._template, values, self._max_seconds)
        return _cut_at_end(text) if continue_final_message else text


def _mark_end(chat: list[dict[str, Any]]) -> None:
    content = chat[-1].get("content")
    # The trailing space tells whether the template trims the message.
    if isinstance(content, list) and content:
        content[-1]["text"] += _END_OF_MESSAGE + " "
    elif isinstance(content, str):
        chat[-1]["content"] = content + _END_OF_MESSAGE + " "
    else:
        raise ValueError("continue_final_message=True needs a last message with text to continue")


def _cut_at_end(text: str) -> str:
    end = text.rfind(_END_OF_MESSAGE)
    if end < 0:
        raise ValueError(
            "continue_final_message=True: this chat template does not print the last message's content"
        )
    kept = text[:end]
    return kept if text.startswith(_END_OF_MESSAGE + " ", end) else kept.rstrip()


class _DeadlineExceeded(BaseException):
    """Raised inside the rendering thread; no template can catch it."""


def _render(template: jinja2.Template, values: Mapping[str, Any], max_seconds: float) -> str:
    result: list[str] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            chunks, size = [], 0
            for chunk in template.generate(values):
                size += len(chunk)
                if size > MAX_OUTPUT_CHARS:
                    raise jinja2.TemplateError(f"the output exceeds {MAX_OUTPUT_CHARS} characters")
                chunks.append(chunk)
            result.append("".join(chunks))
        except BaseException as error:  # Handed to the caller's thread.
            failure.append(error)

    thread = threading.Thread(target=work, name="octavo-template", daemon=True)
    thread.start()
    thread.join(max_seconds)
    if thread.is_alive():
        _stop_thread(thread)
        raise ValueError(
            f"chat template took longer than {max_seconds:g} s; shorten the conversation or fix the template"
        )
    if failure:
        raise ValueError(_explain(failure[0])) from failure[0]
    return result[0]


def _stop_thread(thread: threading.Thread) -> None:
    # An asynchronous exception is delivered at the next bytecode; the sandbox has refused single steps that
    # take long.
    give_up = time.monotonic() + 1.0
    while thread.is_alive() and time.monotonic() < give_up:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_DeadlineExceeded)
        )
        thread.join(0.05)


def _explain(error: BaseException) -> str:
    if isinstance(error, jinja2.UndefinedError):
        return f"chat template uses something these messages lack: {error.message}"
    if isinstance(error, jinja2.exceptions.SecurityError):
        return f"chat template did something the sandbox forbids: {error}"
    if isinstance(error, jinja2.TemplateError):
        return f"chat template: {error}"
    return f"chat template failed with {type(error).__name__}: {error}"


def find_chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template of a model's folder: chat_template.jinja, chat_template.json or tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return _read(path)
    template = config.get("chat_template")
    if template is None:
        template = (read_json(folder / "chat_template.json") or {}).get("chat_template")
    if isinstance(template, list):
        # Several named templates: the one called "default" is the one for plain chats.
        entries = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(file_failure(path, error)) from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 text ({error}): download it again") from error
