"""The interactive loop of `octavo chat`: reads lines and slash commands until Ctrl-D or /exit."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from octavo.cli.console import note
from octavo.cli.engine import sampling_options
from octavo.cli.errors import CommandError
from octavo.errors import did_you_mean

if TYPE_CHECKING:
    from octavo.cli.conversation import Conversation

HELP = """\
/help                 this list
/reset                forget the conversation; the system message stays
/system [TEXT]        set the system message and start anew; without TEXT: remove it
/params [NAME=VALUE]  show or change the sampling parameters
/stats                tokens, cache hits and speed so far
/exit                 leave (Ctrl-D as well)

A line that ends with \\ goes on in the next; a block between two lines of \"\"\" may hold anything.
Ctrl-C stops an answer and keeps the conversation."""
BLOCK = '"""'


class Repl:
    """Questions in, answers out; commands start with a slash."""

    def __init__(self, conversation: Conversation, answer: Callable[[str], None]) -> None:
        self._conversation = conversation
        self._answer = answer
        self._is_terminal = sys.stdin.isatty()
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: print(HELP),
            "/reset": self._reset,
            "/system": self._system,
            "/params": self._params,
            "/stats": self._stats,
        }

    def run(self) -> None:
        """Answers until the input ends; an error ends its question only."""
        if self._is_terminal:
            with contextlib.suppress(ImportError):  # line editing and history, where Python has them
                import readline  # noqa: F401
            note("/help lists the commands, Ctrl-D leaves")
        while (text := self._read()) is not None:
            if text.strip() in ("/exit", "/quit"):
                return
            try:
                self._handle(text)
            except (CommandError, ValueError) as error:
                print(f"octavo: error: {' '.join(str(error).split())}", file=sys.stderr)

    def _handle(self, text: str) -> None:
        if not text.strip():
            return
        if not text.startswith("/"):
            self._answer(text)
            return
        name, _, rest = text.strip().partition(" ")
        command = self._commands.get(name)
        if command is None:
            near = did_you_mean(name, [*self._commands, "/exit"])
            raise CommandError(f"unknown command {name}{near}; /help lists the commands")
        command(rest.strip())

    def _read(self) -> str | None:
        """One question, which may span lines; None at the end of the input. Ctrl-C drops what was typed."""
        while True:
            try:
                return self._read_lines()
            except EOFError:
                if self._is_terminal:
                    print()
                return None
            except KeyboardInterrupt:
                print()
                note("Ctrl-D or /exit leaves")

    def _read_lines(self) -> str:
        line = self._line(">>> ")
        if line.strip() == BLOCK:
            lines = []
            while (line := self._line("... ")).strip() != BLOCK:
                lines.append(line)
            return "\n".join(lines)
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._line("... "))
        return "\n".join(lines)

    def _line(self, prompt: str) -> str:
        return input(prompt if self._is_terminal else "")

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        note("the conversation is empty")

    def _system(self, text: str) -> None:
        self._conversation.system = text or None
        self._reset("")

    def _params(self, text: str) -> None:
        """`/params a=1 b=2` changes; without arguments it shows."""
        options = {option.name: option for option in sampling_options()}
        for assignment in text.split():
            name, equals, value = assignment.partition("=")
            name = name.replace("-", "_")
            if not equals or name not in options:
                raise CommandError(f"unknown parameter {name}{did_you_mean(name, options)}; use NAME=VALUE")
            parse = options[name].spelling.parse
            self._conversation.set_sampling(name, parse(value) if parse else parse_switch(value))
        for name, value in self._conversation.sampling_in_use().items():
            print(f"{name} = {value}")

    def _stats(self, _: str) -> None:
        answers = self._conversation.answers
        prompt_tokens = sum(answer.prompt_tokens for answer in answers)
        cached = sum(answer.cached_tokens for answer in answers)
        print(f"answers {len(answers)}, output tokens {sum(answer.output_tokens for answer in answers)}")
        print(f"prompt tokens {prompt_tokens}, of these {cached} from the prefix cache")
        if answers:
            print(f"last answer: {answers[-1].summary()}")


def parse_switch(text: str) -> bool:
    """true or false, as people write them."""
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise CommandError(f"{text!r} is neither true nor false")
