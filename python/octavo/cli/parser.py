"""An argument parser that takes underscores for dashes and names the nearest flag when one is unknown."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from octavo.cli.errors import EXIT_USAGE


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the examples in descriptions as written; the usage line names positional arguments only."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, max_help_position=30, **options)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        """`usage: octavo generate [flags] MODEL [PROMPT ...]` in place of thirty flags."""
        if usage is None:
            self._prog += " [flags]"
            actions = [action for action in actions if not action.option_strings]
        super().add_usage(usage, actions, [] if usage is None else groups, prefix)


class Parser(argparse.ArgumentParser):
    """One line on stderr for a wrong command line, with the nearest name; no abbreviations.

    Abbreviated flags are refused: a flag added later would make them ambiguous or change their meaning.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", Formatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Like parse_args, but flags and positional arguments may stand in any order.

        An unknown argument is reported with the nearest flag.
        """
        # argparse cannot intermix where there are subcommands; these have one positional argument each.
        parse = self.parse_known_intermixed_args if self._subparsers is None else self.parse_known_args
        known, unknown = parse(arguments)
        if unknown:
            owner = getattr(known, "owner", self)
            owner.error(owner.describe_unknown(unknown))
        return known

    def describe_unknown(self, unknown: Sequence[str]) -> str:
        """One clause for the first argument that nothing took."""
        name = unknown[0].split("=", 1)[0]
        if not name.startswith("-"):
            return f"unexpected argument {unknown[0]!r}; quote a prompt that contains spaces"
        near = difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
        return f"unknown flag {name}; {remedy}"

    def error(self, message: str) -> NoReturn:
        """Prints one line and leaves with the exit code for a wrong command line."""
        choice = re.match(r"argument (\S+): invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            message = describe_choice(*choice.groups())
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def describe_choice(argument: str, value: str, choices: str) -> str:
    """The clause for a value outside a fixed set, with the nearest member first."""
    names = [name.strip().strip("'\"") for name in choices.split(",")]
    near = difflib.get_close_matches(value, names, n=1)
    what = "command" if argument.isupper() else argument
    remedy = f"did you mean {near[0]}?" if near else f"choose from {', '.join(names)}"
    return f"unknown {what} {value!r}; {remedy}" if what == "command" else f"{what} is {value!r}; {remedy}"


def with_dashes(arguments: Sequence[str]) -> list[str]:
    """`--max_tokens=4` becomes `--max-tokens=4`; values and everything after `--` stay as they are."""
    result: list[str] = []
    for index, argument in enumerate(arguments):
        if argument == "--":
            return [*result, *arguments[index:]]
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            argument = name.replace("_", "-") + equals + value
        result.append(argument)
    return result
