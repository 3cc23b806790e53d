"""What the commands that run a model share: engine flags, sampling flags, and the LLM they make."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from octavo import config, env
from octavo.cli.errors import CommandError, UsageError
from octavo.cli.options import Option, add_options, given, options_of
from octavo.hf.reader import read_json

if TYPE_CHECKING:
    from octavo import LLM, RequestOutput, SamplingParams

ENGINE_DATACLASSES = (
    config.ModelConfig,
    config.LoadConfig,
    config.CacheConfig,
    config.SchedulerConfig,
    config.DeviceConfig,
)
# The commands choose how outputs arrive; --seed is the engine's, which seeds each request that has none.
MODEL_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
NOT_SAMPLING_FLAGS = ("output_kind", "detokenize", "seed")


@functools.cache
def engine_options() -> tuple[Option, ...]:
    """Every engine option but the model, which is a positional argument."""
    return tuple(option for part in ENGINE_DATACLASSES for option in options_of(part, exclude=("model",)))


@functools.cache
def sampling_options() -> tuple[Option, ...]:
    """Every sampling parameter that a command line can spell."""
    from octavo.sampling_params import SamplingParams

    return tuple(options_of(SamplingParams, exclude=NOT_SAMPLING_FLAGS))


def add_model(parser: argparse.ArgumentParser) -> None:
    """The positional argument of every command that reads a model."""
    parser.add_argument("model", metavar="MODEL", help='a folder of a model, or "tiny"')


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `octavo.LLM`, with vLLM's names."""
    add_options(parser.add_argument_group("engine"), engine_options())


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `octavo.SamplingParams`."""
    add_options(parser.add_argument_group("sampling"), sampling_options())


def make_llm(args: argparse.Namespace, *, skip_tokenizer_init: bool = False, **defaults: Any) -> LLM:
    """The LLM that the command line describes; a flag wins over `defaults`.

    Raises UsageError for a bad option, before torch is imported.
    """
    options = defaults | given(args, engine_options())
    with usage_errors():
        config.from_options({"model": args.model, **options})
    config.model_folder(args.model)
    set_up_logging(verbose=args.verbose)
    from octavo import LLM

    return LLM(args.model, skip_tokenizer_init=skip_tokenizer_init, **options)


def given_sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling parameters that the command line set."""
    return given(args, sampling_options())


def make_sampling_params(args: argparse.Namespace, **defaults: Any) -> SamplingParams:
    """The sampling parameters of the command line; a flag wins over `defaults`.

    Raises UsageError for a bad value.
    """
    from octavo.sampling_params import SamplingParams

    with usage_errors():
        return SamplingParams(**defaults | given_sampling(args))


def model_sampling(model: str) -> dict[str, Any]:
    """The sampling that the model's authors recommend: generation_config.json, {} without one.

    `do_sample: false` means greedy. max_new_tokens is left out: it is a default of scripts, not of the model.
    """
    values = read_json(config.model_folder(model) / "generation_config.json") or {}
    sampling = {name: values[name] for name in MODEL_SAMPLING if values.get(name) is not None}
    return sampling | {"temperature": 0.0} if values.get("do_sample") is False else sampling


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Values that the library refuses came from the command line: exit code 2."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def raise_failed(outputs: Iterable[RequestOutput]) -> None:
    """Raises CommandError if a request ended with an error: its numbers and texts are worth nothing."""
    reasons = [
        completion.stop_reason
        for output in outputs
        for completion in output.outputs
        if completion.finish_reason == "error"
    ]
    if reasons:
        raise CommandError(f"{len(reasons)} outputs failed: {reasons[0]}")


def set_up_logging(*, verbose: bool) -> None:
    """The engine's log on stderr: one line a record, or everything with its traceback for --verbose."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("octavo: %(message)s") if verbose else OneLine())
    logger = logging.getLogger("octavo")
    logger.handlers, logger.propagate = [handler], False
    level = env.log_level()
    logger.setLevel(level.upper() if level else logging.INFO if verbose else logging.WARNING)
    # Libraries warn about each other; that is not the user's business unless asked for.
    warnings.simplefilter("default" if verbose else "ignore")


class OneLine(logging.Formatter):
    """The message without its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """`octavo: warning: ...`"""
        return f"octavo: {record.levelname.lower()}: {' '.join(record.getMessage().split())}"
