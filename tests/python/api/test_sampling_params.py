from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.sampling_params import RequestOutputKind, SamplingParams

NAN, INF = float("nan"), float("inf")


def test_defaults_are_vllms() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (params.max_tokens, params.min_tokens, params.seed) == (16, 0, None)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.0, 0.0, 1.0)
    assert (params.stop, params.stop_token_ids, params.bad_words) == ([], [], [])
    assert (params.logprobs, params.prompt_logprobs, params.logit_bias, params.allowed_token_ids) == (
        None,
    ) * 4
    assert (params.detokenize, params.skip_special_tokens, params.spaces_between_special_tokens) == (
        True,
    ) * 3
    assert (params.ignore_eos, params.include_stop_str_in_output) == (False, False)
    assert params.output_kind is RequestOutputKind.CUMULATIVE


def test_values_get_their_plain_form() -> None:
    params = SamplingParams(
        stop="x", seed=-1, top_k=-1, logprobs=True, logit_bias={"7": 1}, temperature=np.float32(0.5)
    )
    assert (params.stop, params.seed, params.top_k, params.logprobs) == (["x"], None, 0, 1)
    assert (params.logit_bias, params.temperature) == ({7: 1.0}, 0.5)
    assert SamplingParams(logprobs=False).logprobs is None
    assert SamplingParams(n=np.int64(3), max_tokens=None).n == 3
    assert SamplingParams(temperature=1e-6).is_greedy
    assert not SamplingParams(temperature=1e-4).is_greedy


def test_validation_is_idempotent_and_copies_are_equal() -> None:
    params = SamplingParams(
        stop=["a", "b"], logit_bias={1: 2.0}, allowed_token_ids=(3, 4), logprobs=0, seed=2**64 - 1
    )
    again = copy.deepcopy(params)
    again.validate()
    assert again == params == pickle.loads(pickle.dumps(params)) == dataclasses.replace(params)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        *[("n", value, "from 1 to 128") for value in (0, -1, 129, 10**30, 1.0, "1", True, None)],
        *[
            (field, value, "from -2 to 2")
            for field in ("presence_penalty", "frequency_penalty")
            for value in (NAN, INF, -INF, 2.1, -2.1, "1", True, None, 10**400)
        ],
        *[("repetition_penalty", value, "above 0") for value in (0, -1, NAN, INF, 1e9)],
        *[("temperature", value, "0 is greedy") for value in (-0.1, NAN, INF, 101, "hot", None, 1j)],
        *[("top_p", value, "above 0") for value in (0, -0.1, 1.1, NAN, INF)],
        *[("min_p", value, "from 0 to 1") for value in (-0.1, 1.1, NAN, INF)],
        *[("top_k", value, "from -1") for value in (-2, 2**31, 1.5, "5")],
        *[("seed", value, "use an integer") for value in (2**64, -(2**63) - 1, 1.5, "7", True)],
        *[("max_tokens", value, "from 1") for value in (0, -1, 2**31, 1.5, "16", True)],
        *[("min_tokens", value, "from 0") for value in (-1, 1.5, 2**31)],
        ("min_tokens", 17, "at most max_tokens=16"),
        *[
            (field, value, "from -1")
            for field in ("logprobs", "prompt_logprobs")
            for value in (-2, 1.5, "5", 2**31)
        ],
        *[("truncate_prompt_tokens", value, "use") for value in (0, -2, 1.5)],
        *[("stop", value, "string") for value in (5, [5], [""], "", b"x", [None])],
        ("stop", ["x"] * 17, "at most 16"),
        ("stop", "é" * 129, "258 bytes, use at most 256"),
        *[("bad_words", value, "string") for value in (5, [""], [5])],
        ("bad_words", ["x"] * 129, "at most 128"),
        ("bad_words", ["x" * 1025], "1025 characters"),
        *[
            (field, value, "use")
            for field in ("stop_token_ids", "allowed_token_ids")
            for value in (5, "12", [-1], [1.5], [True], [None], [2**31])
        ],
        ("stop_token_ids", [1] * 101, "at most 100"),
        ("allowed_token_ids", [], "would allow no token"),
        *[
            ("logit_bias", value, "use")
            for value in (5, [1], {-1: 0}, {1.5: 0}, {"x": 0}, {None: 0}, {2**31: 0})
        ],
        *[("logit_bias", {3: value}, "from -100 to 100") for value in (NAN, INF, 101, "1", None, True)],
        ("logit_bias", dict.fromkeys(range(301), 0), "at most 300"),
        *[
            (field, value, "True or False")
            for field in ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output")
            for value in (1, None, "yes")
        ],
        ("output_kind", "delta", "RequestOutputKind"),
    ],
)
def test_bad_values_are_refused_by_name(field: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field}.* is not valid: .*{words}"):
        SamplingParams(**{field: value})


def test_an_unknown_name_is_a_type_error_that_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"no 'temprature' \(did you mean 'temperature'\?\)"):
        SamplingParams(temprature=0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no 'xyzzy'$"):
        SamplingParams(xyzzy=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        SamplingParams(0.5)  # type: ignore[misc]


def test_stop_strings_need_text() -> None:
    with pytest.raises(ValueError, match="need detokenize=True"):
        SamplingParams(stop="x", detokenize=False)


@given(
    st.sampled_from([field.name for field in dataclasses.fields(SamplingParams)]),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.binary(max_size=4),
        st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=4)), max_size=4),
        st.dictionaries(st.one_of(st.integers(), st.text(max_size=3)), st.floats(), max_size=3),
    ),
)
def test_any_value_is_taken_or_refused_with_a_value_error(field: str, value: Any) -> None:
    try:
        params = SamplingParams(**{field: value})
    except ValueError as error:
        assert "is not valid" in str(error)
    else:
        params.validate()
