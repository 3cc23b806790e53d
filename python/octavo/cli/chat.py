"""`octavo chat`: one question on the command line, or a conversation."""

from __future__ import annotations

import argparse
import sys

from octavo.cli.console import note
from octavo.cli.conversation import Conversation
from octavo.cli.engine import (
    add_engine_flags,
    add_model,
    add_sampling_flags,
    given_sampling,
    make_llm,
    make_sampling_params,
    model_sampling,
)
from octavo.cli.errors import EXIT_INTERRUPTED, EXIT_OK
from octavo.cli.repl import Repl
from octavo.cli.stream import printable

DESCRIPTION = """\
Talk to a model. With a question: print the answer and exit. Without: a conversation; /help lists its
commands. Sampling follows the model's generation_config.json unless a flag says otherwise.

  octavo chat tiny "what is paged attention"
  octavo chat ./model --system "Answer in one sentence." --temperature 0.7"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `octavo chat`."""
    add_model(parser)
    parser.add_argument("question", metavar="QUESTION", nargs="?", help="ask this and exit")
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument(
        "--stats", action="store_true", help="print the timings even where stderr is no terminal"
    )
    add_sampling_flags(parser)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Answers the question, or runs the conversation."""
    make_sampling_params(args)
    llm = make_llm(args)
    sampling = model_sampling(args.model) | given_sampling(args)
    conversation = Conversation(llm, sampling, system=args.system)
    if args.question is None:
        Repl(conversation, lambda question: answer(conversation, question, stats=args.stats)).run()
        return EXIT_OK
    answer(conversation, args.question, stats=args.stats)
    return EXIT_INTERRUPTED if conversation.answers[-1].interrupted else EXIT_OK


def answer(conversation: Conversation, question: str, *, stats: bool) -> None:
    """Streams one answer to stdout, then its timings to stderr where somebody watches."""
    is_terminal = sys.stdout.isatty()
    for text in conversation.ask(question):
        print(printable(text) if is_terminal else text, end="", flush=True)
    print(flush=True)
    if stats or (is_terminal and sys.stderr.isatty()):
        note(conversation.answers[-1].summary())
