"""The sandbox that chat templates run in: Jinja's, with single steps of unbounded cost refused.

A deadline cannot stop one long step, nor what one step allocates. So whatever makes text or lists out of
others (+, ~, *, %, blocks, macros, join, replace, format, tojson) first weighs them, and no text or list
grows beyond the limit of the whole output: a template that doubles a text forty times ends at the first
doubling too many.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT_CHARS = 4 << 20
_MAX_EXPONENT = 64
_WIDE_FORMAT = re.compile(r"\d{5,}")
_NO_TEXT = (str, int, float, type(None))  # that weighing need not look into
# No template needs them, and one call can cost any amount.
_FORBIDDEN_METHODS = frozenset({"translate", "expandtabs"})


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`: marks the assistant's text for training; here its body is simply rendered."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _CodeGenerator(jinja2.compiler.CodeGenerator):
    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:
        # `~` is no operator that a sandbox may intercept.
        self.write("environment.join_texts((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})
    code_generator_class = _CodeGenerator

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, jinja2.ext.loopcontrols],
            finalize=_weighed,
        )
        for name in ("center", "indent", "truncate", "wordwrap"):
            self.filters[name] = _narrow(self.filters[name])
        for name in ("string", "pprint", "urlencode", "xmlattr", "escape", "e", "forceescape", "urlize"):
            self.filters[name] = _weighing(self.filters[name])
        self.filters["format"] = _format
        self.filters["tojson"] = _tojson
        self.filters["join"] = _join
        self.filters["replace"] = _replace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What a block or macro has written."""
        return _joined("", list(parts))

    @staticmethod
    def join_texts(parts: Iterable[Any]) -> str:
        """`~`."""
        return _joined("", [str(_weighed(part)) for part in parts])

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (_is_small(left, 1 << 20) and _is_small(right, _MAX_EXPONENT)):
            raise jinja2.exceptions.SecurityError("power of large numbers")
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_size(len(left) + len(right))
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if hasattr(many, "__len__") and isinstance(times, int):
                    _check_size(len(many) * times, "repetition")
        if operator == "%" and isinstance(left, str):
            _check_format(left, "%", right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: jinja2.runtime.Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        text, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        # str.format arrives wrapped by the sandbox, other methods of str as they are.
        if isinstance(text, str) or name == "format":
            _check_widths((*args, *kwargs.values()))
        if isinstance(text, str):
            if name in _FORBIDDEN_METHODS:
                raise jinja2.exceptions.SecurityError(f"the method {name} of a text")
            if name == "join" and len(args) == 1:
                return _joined(text, list(args[0]))
            if name == "replace" and len(args) >= 2:
                return _replace(text, *args)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text, run = value.__self__, wrapped

        def format(*args: Any, **kwargs: Any) -> str:
            _check_format(text, "{", args, kwargs)
            return run(*args, **kwargs)

        return format


def _check_size(size: int, what: str = "a text or list") -> None:
    if size > MAX_OUTPUT_CHARS:
        raise jinja2.exceptions.SecurityError(f"{what} beyond {MAX_OUTPUT_CHARS} elements")


def _weight(value: Any) -> int:
    """About how many characters a value prints as, which can be far more than it takes in memory: a list may
    hold another many times. Gives up at the limit.
    """
    if isinstance(value, str):
        return len(value)
    total, left = 0, [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left.extend(item.keys())
            left.extend(item.values())
        elif isinstance(item, (list, tuple, set, frozenset)):
            left.extend(item)
        total += len(item) if isinstance(item, str) else 4
        _check_size(max(total, len(left)))
    return total


def _weighed(value: Any) -> Any:
    if not isinstance(value, _NO_TEXT):
        _weight(value)
    return value


def _weighing(function: Callable[..., Any]) -> Callable[..., Any]:
    def weighing(value: Any, *args: Any, **kwargs: Any) -> Any:
        return function(_weighed(value), *args, **kwargs)

    return weighing


def _is_small(value: Any, limit: int) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= limit


def _check_widths(values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > MAX_OUTPUT_CHARS for value in values):
        raise jinja2.exceptions.SecurityError(f"width beyond {MAX_OUTPUT_CHARS} characters")


def _narrow(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses widths beyond the output's limit."""

    def narrow(value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_widths((*args, *kwargs.values()))
        return function(_weighed(value), *args, **kwargs)

    return narrow


def _check_format(text: str, mark: str, *values: Any) -> None:
    """Each mark may print all of the values."""
    if _WIDE_FORMAT.search(text):
        raise jinja2.exceptions.SecurityError("a format with a width of five or more digits")
    _check_size(len(text) + text.count(mark) * sum(map(_weight, values)))


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    text = str(_weighed(value))
    _check_widths((*args, *kwargs.values()))
    _check_format(text, "%", args, kwargs)
    return text % (kwargs or args)


def _joined(separator: str, parts: list[str]) -> str:
    _check_size(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


@jinja2.pass_environment
def _join(environment: jinja2.Environment, value: Any, d: str = "", attribute: Any = None) -> str:
    items: Iterable[Any] = value
    if attribute is not None:
        items = map(jinja2.filters.make_attrgetter(environment, attribute), items)
    return _joined(str(_weighed(d)), [str(_weighed(item)) for item in items])


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = (str(_weighed(part)) for part in (value, old, new))
    _check_size(len(text) + text.count(old) * max(0, len(new) - len(old)))
    return text.replace(old, new, -1 if count is None else count)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    _check_widths((indent,))
    # Jinja's own filter escapes HTML characters, which models have never seen.
    return json.dumps(
        _weighed(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
