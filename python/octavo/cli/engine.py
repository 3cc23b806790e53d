"""What the commands that run a model share: engine flags, sampling flags, and the LLM they make."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from octavo import config
from octavo.cli.errors import CommandError, UsageError
from octavo.cli.options import Option, add_options, given, options_of

if TYPE_CHECKING:
    from octavo import LLM, SamplingParams

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


def make_llm(args: argparse.Namespace, **defaults: Any) -> LLM:
    """The LLM that the command line describes; a flag wins over `defaults`.

    Raises UsageError for a bad option, before torch is imported.
    """
    options = defaults | given(args, engine_options())
    with usage_errors():
        config.from_options({"model": args.model, **options})
    with quiet(args):
        from octavo import LLM

        return LLM(args.model, **options)


def given_sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling parameters that the command line set."""
    return given(args, sampling_options())


def make_sampling_params(args: argparse.Namespace, **options: Any) -> SamplingParams:
    """The sampling parameters of the command line, `options` over them. Raises UsageError for a bad value."""
    from octavo.sampling_params import SamplingParams

    with usage_errors():
        return SamplingParams(**given_sampling(args) | options)


def model_sampling(model: str) -> dict[str, Any]:
    """The sampling that the model's authors recommend: generation_config.json, {} without one.

    `do_sample: false` means greedy. max_new_tokens is left out: it is a default of scripts, not of the model.
    """
    path = config.model_folder(model) / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CommandError(f"{path.name} of the model is not JSON: {error}") from error
    sampling = {name: values[name] for name in MODEL_SAMPLING if values.get(name) is not None}
    return sampling | {"temperature": 0.0} if values.get("do_sample") is False else sampling


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Values that the library refuses came from the command line: exit code 2."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


@contextlib.contextmanager
def quiet(args: argparse.Namespace) -> Iterator[None]:
    """Keeps warnings of imported libraries off the screen unless --verbose asks for them."""
    with warnings.catch_warnings():
        if not args.verbose:
            warnings.simplefilter("ignore")
        yield
