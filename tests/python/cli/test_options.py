"""Flags that come from dataclass fields."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from octavo.cli.errors import UsageError
from octavo.cli.options import Option, add_options, given, options_of
from octavo.cli.parser import Parser, with_dashes


@dataclasses.dataclass(kw_only=True)
class Options:
    """Every kind of field."""

    count: int = 3  # how many
    share: float | None = None
    name: str = "auto"
    fast: bool = True
    size: int | str | None = None
    stop: str | Sequence[str] | None = None
    ids: Sequence[int] | None = None
    bias: Mapping[int, float] | None = None
    left: int | None = 16
    opaque: object = None
    _private: int = 0


def parse(*arguments: str) -> dict[str, Any]:
    parser = Parser(prog="test")
    options = options_of(Options)
    add_options(parser, options)
    return given(parser.parse(with_dashes(arguments)), options)


def by_name() -> dict[str, Option]:
    return {option.name: option for option in options_of(Options)}


def test_a_flag_not_given_leaves_no_trace() -> None:
    assert parse() == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--count", "8k"], {"count": 8000}),
        (["--count=8K"], {"count": 8192}),
        (["--share", "0.5"], {"share": 0.5}),
        (["--no-fast"], {"fast": False}),
        (["--size", "80GiB"], {"size": "80GiB"}),
        (["--size", "80"], {"size": 80}),
        (["--stop", "a,b", "--stop", "c"], {"stop": ["a,b", "c"]}),
        (["--stop", '["\\n", "]"]'], {"stop": ["\n", "]"]}),
        (["--ids", "1,2", "--ids", "3"], {"ids": [1, 2, 3]}),
        (["--bias", '{"5": -1.5}'], {"bias": {5: -1.5}}),
        (["--left", "none"], {"left": None}),
        (["--count", "-1"], {"count": -1}),
    ],
)
def test_text_becomes_the_fields_type(arguments: list[str], expected: dict[str, Any]) -> None:
    assert parse(*arguments) == expected


def test_help_is_the_comment_beside_the_field() -> None:
    assert by_name()["count"].help == "how many"
    assert by_name()["share"].help == ""


def test_fields_that_no_text_can_spell_are_left_out() -> None:
    assert not {"opaque", "_private"} & set(by_name())


def test_underscores_are_dashes_in_names_only() -> None:
    assert with_dashes(["--a_b=c_d", "--e_f", "g_h", "--", "--i_j"]) == [
        "--a-b=c_d",
        "--e-f",
        "g_h",
        "--",
        "--i_j",
    ]


def test_every_engine_and_sampling_option_is_a_flag() -> None:
    from octavo import config
    from octavo.cli.engine import NOT_SAMPLING_FLAGS, engine_options, sampling_options
    from octavo.sampling_params import SamplingParams

    engine = {option.name for option in engine_options()}
    logs = {field.name for field in dataclasses.fields(config.LogConfig)}
    assert engine == set(config.option_names()) - {"model"} - logs
    sampling = {option.name for option in sampling_options()}
    assert sampling == {field.name for field in dataclasses.fields(SamplingParams)} - set(NOT_SAMPLING_FLAGS)
    assert not engine & sampling


def test_a_value_that_the_library_refuses_is_a_usage_error() -> None:
    from octavo.cli.engine import make_sampling_params

    with pytest.raises(UsageError, match="top_p"):
        make_sampling_params(argparse.Namespace(top_p=7.0))
