"""The entry point: finds the command, imports its module alone, runs it and turns failures into exit codes.

Nothing here imports torch, rich or a model: `octavo --help` answers in the time of a Python start.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from octavo.cli.errors import EXIT_BROKEN_PIPE, EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, CommandError
from octavo.cli.parser import Parser, with_dashes
from octavo.version import __version__

# Command: (module with `add_arguments(parser)` and `run(args) -> exit code`, one line for --help).
COMMANDS = {
    "generate": ("octavo.cli.generate", "complete prompts"),
    "chat": ("octavo.cli.chat", "talk to a model, or ask it one question"),
    "bench": ("octavo.cli.bench", "measure throughput, latency or single steps on synthetic prompts"),
    "plan": ("octavo.cli.plan", "say whether a model fits, from its headers alone"),
    "simulate": ("octavo.cli.simulate", "serve traffic in virtual time, on a device you may not have"),
    "collect-env": ("octavo.cli.collect_env", "describe this machine for a bug report"),
}

DESCRIPTION = """\
Octavo runs language models: continuous batching, paged KV cache, prefix caching.

  octavo chat tiny "what is paged attention"
  octavo generate ./model "Once upon a time" --max-tokens 64
  octavo plan ./model --memory 80GiB --context 8k,32k"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 failure, 2 usage, 130 Ctrl-C, 141 broken pipe."""
    arguments = with_dashes(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return run_command(arguments)
        finally:
            # Here and not at the interpreter's end, where a closed pipe could no longer be handled.
            sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        silence_stdout()
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if is_verbose(arguments):
            raise
        return report(error)


def run_command(arguments: Sequence[str]) -> int:
    """Parses the command line and runs its command."""
    command = arguments[0].replace("_", "-") if arguments else None
    if command not in COMMANDS:
        top = top_parser()
        top.parse_args(arguments)  # --help, --version and unknown commands end here
        top.print_help()
        return EXIT_OK
    args = command_parser(command).parse(arguments[1:])
    code: int = args.run(args)
    return code


def is_verbose(arguments: Sequence[str]) -> bool:
    """Whether -v stands on the command line, which must hold before it has been parsed as well."""
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "-v" in flags or "--verbose" in flags


def top_parser() -> Parser:
    """The commands and what each is for; their modules stay unimported."""
    parser = Parser(prog="octavo", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"octavo {__version__}")
    children = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for name, (_, summary) in COMMANDS.items():
        children.add_parser(name, help=summary)
    return parser


def command_parser(name: str) -> Parser:
    """One command's own arguments."""
    implementation = importlib.import_module(COMMANDS[name][0])
    parser = Parser(prog=f"octavo {name}", description=implementation.DESCRIPTION)
    implementation.add_arguments(parser)
    parser.set_defaults(run=implementation.run)
    add_verbose(parser)
    return parser


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """The one flag that every command has."""
    parser.add_argument("-v", "--verbose", action="store_true", help="say more; an error with traceback")


def report(error: Exception) -> int:
    """Prints the one line that an error deserves and returns the exit code."""
    # str() of a KeyError is the repr of its message.
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    line = " ".join(message.split()) or type(error).__name__
    print(f"octavo: error: {line}", file=sys.stderr)
    return error.exit_code if isinstance(error, CommandError) else EXIT_FAILURE


def silence_stdout() -> None:
    """Points stdout at the null device, so that the interpreter's last flush does not fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
