"""Text for people: rich tables and dim lines, imported only when something is printed with them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli.errors import CommandError
from octavo.errors import file_failure

if TYPE_CHECKING:
    from rich.console import Console

GIB = 1 << 30
PIPE_WIDTH = 100  # columns of a table in a pipe or a file, where there is no terminal to ask


def console(*, stderr: bool = False) -> Console:
    """A console that styles only a terminal; with NO_COLOR not even that, where rich would keep bold."""
    from rich.console import Console

    class PipeConsole(Console):
        """Leaves a closed pipe to `main`, where rich would exit with code 1."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    made = PipeConsole(stderr=stderr, highlight=False, width=width)
    if made.no_color:
        made = PipeConsole(stderr=stderr, highlight=False, width=width, color_system=None)
    return made


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose first column is text and whose others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_facts(title: str, facts: Mapping[str, str]) -> None:
    """A title, then names and values in two columns; nothing where there are no facts."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        grid.add_row(f"  {name}", value)
    if facts:
        out = console()
        out.print(title, style="bold")
        out.print(grid)


def note(text: str) -> None:
    """A dim line on stderr, for what is not the command's output."""
    console(stderr=True).print(text, style="dim", markup=False)


def write_json(path: str, value: Mapping[str, Any]) -> None:
    """Writes a result file. Raises CommandError if that cannot be done."""
    try:
        Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(file_failure(path, error, "written")) from error


def gib(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, factor in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.{1 if size >= 100 * factor else 2}f} {unit}"
    return f"{size:.0f} B"
