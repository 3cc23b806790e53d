"""Flags generated from dataclass fields: a new option of the library is a flag without another line here.

A generated flag that is not given leaves no trace in the parsed arguments: the library's default holds, and a
command can tell "given" from "default".
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from octavo.config import parse_length
from octavo.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Spelling:
    """How a value is written on a command line."""

    parse: Callable[[str], Any] | None  # None: a --flag / --no-flag pair
    metavar: str
    choices: tuple[str, ...] | None = None
    is_list: bool = False


@dataclasses.dataclass(frozen=True)
class Option:
    """One generated flag and the keyword it sets."""

    name: str
    spelling: Spelling
    default: Any
    help: str

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return ("-" if len(self.name) == 1 else "--") + self.name.replace("_", "-")


def options_of(dataclass: type, *, exclude: Iterable[str] = ()) -> list[Option]:
    """One option for each public field of `dataclass` whose type a command line can spell."""
    hints = typing.get_type_hints(dataclass)
    helps = comments_of(dataclass)
    excluded = set(exclude)
    result = []
    for field in dataclasses.fields(dataclass):
        if field.name in excluded or field.name.startswith("_") or not field.init:
            continue
        spelling = spell(hints[field.name])
        if spelling is not None:
            result.append(Option(field.name, spelling, default_of(field), helps.get(field.name, "")))
    return result


def comments_of(dataclass: type) -> dict[str, str]:
    """The comment beside each field, which is its help: written once, where the field is.

    Reads the source file, as `inspect.getsource` parses the whole module for each class; {} without a source.
    """
    path = getattr(sys.modules.get(dataclass.__module__), "__file__", None)
    if path is None or not Path(path).is_file():
        return {}
    source = Path(path).read_text(encoding="utf-8")
    body = re.search(rf"^class {dataclass.__name__}\b.*\n((?:[ \t]+.*\n|\n)*)", source, re.MULTILINE)
    fields = re.findall(r"^    (\w+):[^\n#]*#[ ]*(.+)$", body[1] if body else "", re.MULTILINE)
    return dict(fields)


def add_options(group: argparse._ActionsContainer, options: Iterable[Option]) -> None:
    """Adds the generated flags to a parser or an argument group."""
    for option in options:
        spelling, text = option.spelling, describe(option)
        if spelling.parse is None:
            pair: Any = argparse.BooleanOptionalAction
            group.add_argument(
                option.flag, action=pair, default=argparse.SUPPRESS, dest=option.name, help=text
            )
            continue
        group.add_argument(
            option.flag,
            action="extend" if spelling.is_list else "store",
            type=typed(spelling.parse, spelling.metavar),
            choices=spelling.choices,
            metavar="{" + ",".join(spelling.choices) + "}" if spelling.choices else spelling.metavar,
            default=argparse.SUPPRESS,
            dest=option.name,
            help=text,
        )


def given(args: argparse.Namespace, options: Iterable[Option]) -> dict[str, Any]:
    """The keywords that the command line set."""
    return {option.name: getattr(args, option.name) for option in options if hasattr(args, option.name)}


def describe(option: Option) -> str:
    """The help line: the field's own words, then the default."""
    shown = option.default
    silent = shown is dataclasses.MISSING or shown in (None, "", (), [], {})
    parts = [option.help, "" if silent else f"(default: {shown})"]
    return " ".join(part for part in parts if part).replace("%", "%%")


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default as a user would write it."""
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return value.value if isinstance(value, enum.Enum) else value


def spell(hint: Any) -> Spelling | None:
    """How a command line spells a value of this type; None where it cannot."""
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        spelling = spell_union([member for member in parameters if member is not type(None)])
        return accepting_none(spelling) if spelling and type(None) in parameters else spelling
    if hint is bool:
        return Spelling(None, "")
    if hint is int:
        return Spelling(parse_count, "N")
    if hint is float:
        return Spelling(float, "X")
    if hint is str:
        return Spelling(str, "TEXT")
    if origin is typing.Literal and all(isinstance(value, str) for value in parameters):
        return Spelling(str, "NAME", choices=parameters)
    if origin in (list, tuple, set, frozenset, Sequence, Collection):
        return spell_list(parameters[0])
    if origin in (dict, Mapping):
        return Spelling(lambda text: parse_mapping(text, parameters[0]), "JSON")
    return None


def spell_union(members: list[Any]) -> Spelling | None:
    """A union is spelled as its richest member: a list before a number, a number before text."""
    if str in members and {int, float} & set(members):
        # Digits are a number; what another text means (`8k`, `80GiB`, `auto`) is for the field to say.
        return Spelling(lambda text: first_of(float if float in members else int, text), "N")
    ranks = {int: 1, float: 1, str: 2}
    ordered = sorted(members, key=lambda member: ranks.get(member, 0))
    return next((spelling for member in ordered if (spelling := spell(member))), None)


def accepting_none(spelling: Spelling) -> Spelling:
    """`none` is None where the field has that value, which need not be its default."""
    parse = spelling.parse
    if parse is None or spelling.is_list or spelling.metavar == "TEXT":
        return spelling
    return dataclasses.replace(spelling, parse=lambda text: None if text.lower() == "none" else parse(text))


def first_of(parse: Callable[[str], Any], text: str) -> Any:
    """The parsed value, or the text itself where it is no number."""
    try:
        return parse(text)
    except ValueError:
        return text


def spell_list(element: Any) -> Spelling | None:
    """A list may be given in pieces: the flag again adds to it."""
    if element in (int, float):
        return Spelling(lambda text: [element(part) for part in text.split(",")], "N,N,...", is_list=True)
    return Spelling(parse_texts, "TEXT", is_list=True) if element is str else None


def parse_texts(text: str) -> list[str]:
    """One text as it stands (it may hold commas), or a JSON list of texts, for escapes such as `["\\n"]`."""
    if not text.startswith("["):
        return [text]
    value = json.loads(text)
    if not isinstance(value, list):
        raise ValueError("not a JSON list")
    return [str(item) for item in value]


def parse_mapping(text: str, key: Any) -> dict[Any, Any]:
    """A JSON object; its keys are numbers where the field says so."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return {key(name) if key is int else name: item for name, item in value.items()}


def parse_count(text: str) -> int:
    """An integer; `8k` is 8,000 and `8K` 8,192, as everywhere in Octavo."""
    try:
        return int(text)
    except ValueError:
        value = parse_length(text, "value")
        if value is None:
            raise
        return value


def parse_counts(text: str) -> list[int]:
    """Comma-separated counts: `8k,32k`."""
    return [parse_count(part) for part in text.split(",") if part.strip()]


def typed(parse: Callable[[str], Any], what: str) -> Callable[[str], Any]:
    """`parse` with the error that argparse shows as one clause."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        except (ValueError, TypeError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}: {error}") from None

    return convert
