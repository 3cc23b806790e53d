"""Chat messages: checked and copied into the plain form that chat templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.errors import shown


def normalise_messages(messages: Sequence[Mapping[str, Any]], *, as_parts: bool) -> list[dict[str, Any]]:
    """A fresh copy of plain data in the form templates expect. Raises ValueError naming the message and
    field.

    Content parts are joined by a newline where the template takes only strings; keys whose value is None
    disappear, since templates print them as "None"; a tool call's arguments, JSON text in OpenAI's format,
    become an object.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(
            f"messages must be a list of {{'role', 'content'}} objects, not {type(messages).__name__}"
        )
    if not messages:
        raise ValueError("messages is empty; give at least one message")
    chat = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(
                f"messages[{i}] must be an object with 'role' and 'content', not {type(message).__name__}"
            )
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise ValueError(f"messages[{i}].role={shown(role)} must be a name such as 'user' or 'assistant'")
        fields = {key: plain_data(value) for key, value in message.items() if value is not None}
        if "content" in fields:
            fields["content"] = _content(fields["content"], f"messages[{i}].content", as_parts=as_parts)
        _parse_arguments(fields.get("tool_calls"), f"messages[{i}].tool_calls")
        chat.append(fields)
    return chat


def _content(content: Any, where: str, *, as_parts: bool) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"{where} must be a string or a list of parts, not {type(content).__name__}")
    parts = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type", "text" if "text" in part else None) if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text"):
            raise ValueError(
                f"{where}[{i}] is of type {shown(kind)}; this model takes parts of type 'text' only"
            )
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{where}[{i}].text must be a string")
        parts.append({"type": "text", "text": part["text"]})
    return parts if as_parts else "\n".join(part["text"] for part in parts)


def _parse_arguments(calls: Any, where: str) -> None:
    if calls is None:
        return
    if not isinstance(calls, list):
        raise ValueError(f"{where} must be a list, not {type(calls).__name__}")
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = plain_data(json.loads(function["arguments"] or "{}"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}[{i}].function.arguments is not valid JSON: {error}") from error


def plain_data(value: Any, depth: int = 0) -> Any:
    """A copy of JSON-like data; anything else becomes its type's name: templates meet no foreign methods."""
    if depth > 64:
        raise ValueError("messages, tools or template variables are nested deeper than 64 levels")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(key): plain_data(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item, depth + 1) for item in value]
    return f"<{type(value).__name__}>"
