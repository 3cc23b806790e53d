"""How a command fails: the exit codes and the two exceptions that carry a line for the user."""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


class CommandError(Exception):
    """The command could not do its work; the message is one line that says what to change."""

    exit_code = EXIT_FAILURE


class UsageError(CommandError):
    """The command line itself is wrong."""

    exit_code = EXIT_USAGE
