"""Whisper end to end: transcripts are transformers', whatever the chunks, the pool, the cache and company."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from runner.late_device import LateDevice

from octavo import LLM, SamplingParams
from octavo.errors import ModelError
from octavo.hf.encoder import EncoderSpec
from octavo.media.log_mel import load_log_mel
from octavo.runner.device_runner import DeviceRunner
from octavo.runner.runner import ModelRunner

NEW_TOKENS = 48
SOUNDS = tiny_models.sounds(10, seed=3)
GREEDY = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
DEFAULT = [2, 9, 11]  # what generation_config.json says
SUPPRESSED: Any = tiny_models.WHISPER_GENERATION["suppress_tokens"]
NOT_FIRST: Any = tiny_models.WHISPER_GENERATION["begin_suppress_tokens"]
ENCODER = EncoderSpec(num_layers=2, num_heads=2, intermediate_size=96, mel_bins=20, length=50)


def clip(samples: Any, **more: Any) -> dict[str, Any]:
    return {"multi_modal_data": {"audio": (samples, 16000)}, **more}


@pytest.fixture(scope="module")
def make(whisper_folder: Path) -> Callable[..., LLM]:
    def made(**options: Any) -> LLM:
        return LLM(whisper_folder, **{"num_threads": 1, "num_gpu_blocks_override": 400, **options})

    return made


@pytest.fixture(scope="module")
def llm(make: Callable[..., LLM]) -> LLM:
    return make()


@pytest.fixture(scope="module")
def truth(whisper: Any, whisper_folder: Path) -> Callable[..., list[int]]:
    """Returns a function: index of a sound, prompt, what is suppressed -> tokens, one forward pass each."""
    extract = load_log_mel(whisper_folder, ENCODER)

    @functools.cache
    def tokens(sound: int, prompt: tuple[int, ...] = (2, 9, 11), suppress: bool = True) -> list[int]:
        features = torch.from_numpy(extract(SOUNDS[sound]))[None]
        ids = list(prompt)
        with torch.inference_mode():
            encoded = whisper.model.encoder(features)
            for i in range(NEW_TOKENS):
                out = whisper(encoder_outputs=encoded, decoder_input_ids=torch.tensor([ids]))
                logits = out.logits[0, -1]
                if suppress:
                    logits[SUPPRESSED + (NOT_FIRST if i == 0 else [])] = -torch.inf
                ids.append(int(logits.argmax()))
        return ids[len(prompt) :]

    return tokens


class LateRunner(DeviceRunner):
    """The device's runner on CPU tensors, with a tier whose copies are late."""

    def add_host_tier(self, engine: Any, size: int, queues: Any = None) -> None:
        super().add_host_tier(engine, size, LateDevice(9, late=False))


@pytest.fixture(params=[ModelRunner, LateRunner], ids=["host", "device"])
def anywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test on the CPU's runner and on the device's."""
    monkeypatch.setattr("octavo.engine.llm.ModelRunner", request.param)


def stats(llm: LLM) -> dict[str, int]:
    found: dict[str, int] = llm.llm_engine.core.stats()
    return found


def assert_idle(llm: LLM) -> None:
    llm.llm_engine.core.check_invariants()
    found = stats(llm)
    assert (found["running"], found["waiting"]) == (0, 0)
    assert found["free_blocks"] == found["total_blocks"]
    assert not llm.llm_engine._items  # what requests brought goes with them


def transcripts(llm: LLM, prompts: list[Any], params: Any = GREEDY) -> list[list[int]]:
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert all(output.outputs[0].finish_reason != "error" for output in outputs), outputs
    assert_idle(llm)
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_transcripts_are_those_of_transformers_generate(llm: LLM, whisper: Any) -> None:
    import transformers

    extractor = transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=1)
    want = []
    for sound in SOUNDS:
        features = extractor(sound, sampling_rate=16000, return_tensors="pt").input_features
        out = whisper.generate(features, max_new_tokens=NEW_TOKENS, do_sample=False)[0].tolist()
        want.append(out[len(DEFAULT) :] if out[: len(DEFAULT)] == DEFAULT else out)
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    got = transcripts(llm, [clip(sound) for sound in SOUNDS], params)
    assert [[token for token in ids if token != 3] for ids in got] == [
        [token for token in ids if token != 3] for ids in want
    ]
    assert len({tuple(ids) for ids in got}) == len(SOUNDS)


LIMITS: list[dict[str, Any]] = [
    {},
    {"max_num_batched_tokens": 4, "max_num_seqs": 4},
    {"max_num_batched_tokens": 7, "block_size": 4},
    {"enable_prefix_caching": False},
    {"num_gpu_blocks_override": 24, "max_num_seqs": 8},
    {"num_gpu_blocks_override": 24, "max_num_seqs": 8, "enable_prefix_caching": False},
    {"num_gpu_blocks_override": 24, "max_num_seqs": 8, "kv_offloading_size": 0.01},
    {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}},
]
IDS = ["all", "chunks", "small-blocks", "no-cache", "tight", "tight-no-cache", "offloading", "drafts"]


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("limits", LIMITS, ids=IDS)
def test_limits_change_no_token(
    make: Callable[..., LLM], truth: Callable[..., list[int]], limits: dict[str, Any]
) -> None:
    tiny = make(**limits)
    long = (2, *tiny_models.random_prompts(1, low=30, high=30, seed=8)[0])
    prompts = [clip(SOUNDS[i], prompt_token_ids=long) if i % 3 == 0 else clip(SOUNDS[i]) for i in range(10)]
    got = transcripts(tiny, prompts)
    assert got == [truth(i, long) if i % 3 == 0 else truth(i) for i in range(10)]
    if "num_gpu_blocks_override" in limits:
        assert stats(tiny)["preemptions"] > 0
    if "speculative_config" in limits:
        assert stats(tiny)["draft_tokens"] > 0


@pytest.mark.usefixtures("anywhere")
def test_the_same_audio_is_encoded_once(
    make: Callable[..., LLM], truth: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = make()
    model: Any = llm.llm_engine.runner.model  # type: ignore[attr-defined]
    encode, encoded = model.encode, []

    def counted(features: torch.Tensor) -> torch.Tensor:
        encoded.append(len(features))
        result: torch.Tensor = encode(features)
        return result

    monkeypatch.setitem(model.__dict__, "encode", counted)
    prompts = [clip(SOUNDS[0]), clip(SOUNDS[1]), clip(SOUNDS[0]), clip(SOUNDS[0], prompt_token_ids=[2, 40])]
    want = [truth(0), truth(1), truth(0), truth(0, (2, 40))]
    assert transcripts(llm, prompts) == want
    assert len(encoded) == 2
    assert transcripts(llm, prompts) == want
    assert len(encoded) == 2  # nothing of it was forgotten
    assert llm.reset_prefix_cache()
    assert transcripts(llm, prompts[:1]) == want[:1]
    assert len(encoded) == 3
    assert transcripts(llm, [clip(SOUNDS[0], cache_salt="mine")]) == want[:1]
    assert len(encoded) == 4  # a salt keeps audio apart too
    assert stats(llm)["encoder_queries"] - stats(llm)["encoder_hits"] == 4


def test_samples_of_one_request_share_the_audio(llm: LLM, truth: Callable[..., list[int]]) -> None:
    params = SamplingParams(n=3, temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    (output,) = llm.generate(clip(SOUNDS[2]), params)
    assert [list(sample.token_ids) for sample in output.outputs] == [truth(2)] * 3
    assert_idle(llm)


def test_prompts_of_every_form(llm: LLM, truth: Callable[..., list[int]]) -> None:
    tokenizer = llm.get_tokenizer()
    ids = tokenizer.encode("the cat", add_special_tokens=False)
    text = "<|im_start|>the cat"  # the start token is not added twice
    prompts = [
        clip(SOUNDS[0], prompt=text),
        clip(SOUNDS[0], prompt="the cat"),
        clip(SOUNDS[0], prompt_token_ids=ids),
        clip(SOUNDS[0], prompt_token_ids=[2, *ids]),
        clip(SOUNDS[0], prompt=""),
        {"multi_modal_data": {"audio": [(SOUNDS[0], 16000)]}},
    ]
    outputs = llm.generate(prompts, GREEDY)
    assert [output.prompt_token_ids for output in outputs] == [[2, *ids]] * 4 + [DEFAULT] * 2
    want = [truth(0, (2, *ids))] * 4 + [truth(0)] * 2
    assert [list(output.outputs[0].token_ids) for output in outputs] == want


def test_a_start_token_behind_a_context_stays_where_it_is(llm: LLM) -> None:
    output = llm.generate(clip(SOUNDS[0], prompt_token_ids=[40, 41, 2, 9]), GREEDY)[0]
    assert output.prompt_token_ids == [40, 41, 2, 9]


def test_what_the_file_suppresses_would_have_been_said(llm: LLM, truth: Callable[..., list[int]]) -> None:
    """Also behind the start alone, which leaves nothing open where there is one language."""
    free = truth(0, suppress=False)
    assert free[0] in NOT_FIRST
    assert set(free) & set(SUPPRESSED)
    alone = (2,)
    assert truth(0, alone) != truth(0, alone, suppress=False)
    assert transcripts(llm, [clip(SOUNDS[0], prompt_token_ids=[2])]) == [truth(0, alone)]


def test_a_bias_lifts_what_the_model_suppresses(llm: LLM) -> None:
    plain, other, never, not_first = (
        transcripts(llm, [clip(SOUNDS[0])], SamplingParams(temperature=0, max_tokens=4, logit_bias=bias))[0]
        for bias in ({60: -100.0}, {40: 100.0}, {5: 100.0}, {12: 100.0})
    )
    assert not set(plain) & set(SUPPRESSED)
    assert other == [40] * 4
    assert (never, not_first) == ([5] * 4, [12] * 4)


def test_a_prompt_that_ends_at_the_start_leaves_all_to_a_multilingual_model(
    whisper_folder: Path, tmp_path: Path, truth: Callable[..., list[int]]
) -> None:
    folder = Path(shutil.copytree(whisper_folder, tmp_path / "model"))
    languages = {"lang_to_id": {"<|en|>": 9}, "task_to_id": {"transcribe": 5}}
    generation = {**tiny_models.WHISPER_GENERATION, **languages, "forced_decoder_ids": [[1, None], [2, 5]]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    llm = LLM(folder, num_threads=1, num_gpu_blocks_override=400)
    assert transcripts(llm, [clip(SOUNDS[4], prompt_token_ids=[2])]) == [truth(4, (2,), suppress=False)]
    assert transcripts(llm, [clip(SOUNDS[4], prompt_token_ids=[2, 9])]) == [truth(4, (2, 9))]
    with pytest.raises(
        ValueError, match="has to be told the language and the task: add 'prompt', for example"
    ):
        llm.generate(clip(SOUNDS[4]))


@pytest.mark.usefixtures("anywhere")
def test_log_probabilities_are_transformers(
    make: Callable[..., LLM], whisper: Any, whisper_folder: Path, truth: Callable[..., list[int]]
) -> None:
    params = SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=2, prompt_logprobs=0
    )
    output = make().generate(clip(SOUNDS[5]), params)[0]
    features = torch.from_numpy(load_log_mel(whisper_folder, ENCODER)(SOUNDS[5]))[None]
    ids = DEFAULT + truth(5)
    with torch.inference_mode():
        raw = whisper(features, decoder_input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    assert output.prompt_logprobs is not None and output.outputs[0].logprobs is not None
    scored = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
    for p, (position, token) in enumerate(zip(scored, ids[1:])):
        assert position is not None
        assert position[token].logprob == pytest.approx(float(raw[p, token]), abs=1e-4)


def test_without_parameters_all_is_written_down_greedily(llm: LLM, truth: Callable[..., list[int]]) -> None:
    params = llm.get_default_sampling_params()
    assert (params.temperature, params.max_tokens) == (0.0, None)
    completion = llm.generate(clip(SOUNDS[0]))[0].outputs[0]
    stop = [*truth(0), 3].index(3)
    assert list(completion.token_ids)[:stop] == truth(0)[:stop]
    assert completion.finish_reason in ("stop", "length")


@pytest.mark.usefixtures("anywhere")
def test_an_abort_gives_back_everything(make: Callable[..., LLM], truth: Callable[..., list[int]]) -> None:
    llm = make()
    engine = llm.llm_engine
    for i in range(6):
        engine.add_request(str(i), clip(SOUNDS[i]), GREEDY)
    for step in range(8):
        engine.step()
        if step == 3:
            engine.abort_request(["0", "4"])  # one that runs and one that waits
    engine.abort_request(["2"])
    last = {}
    while engine.has_unfinished_requests():
        last.update((output.request_id, output.outputs[0]) for output in engine.step())
    assert_idle(llm)
    assert all(list(last[i].token_ids) == truth(int(i)) for i in ("1", "3", "5"))


@pytest.mark.usefixtures("anywhere")
def test_a_failed_encoder_ends_its_step_and_nothing_else(
    make: Callable[..., LLM], truth: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = make()
    model: Any = llm.llm_engine.runner.model  # type: ignore[attr-defined]
    encode = model.encode

    def fails(features: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no memory")

    monkeypatch.setitem(model.__dict__, "encode", fails)
    output = llm.generate(clip(SOUNDS[0]), GREEDY)[0].outputs[0]
    assert (output.finish_reason, output.stop_reason) == ("error", "RuntimeError: no memory")
    assert_idle(llm)
    monkeypatch.setitem(model.__dict__, "encode", encode)
    assert transcripts(llm, [clip(SOUNDS[0])]) == [truth(0)]  # and is not found in the cache


def test_what_is_wrong_with_one_prompt_of_many_is_named_and_nothing_runs(llm: LLM) -> None:
    with pytest.raises(ValueError, match="prompt 1 has no audio, which this model needs"):
        llm.generate([clip(SOUNDS[0]), "the cat"], GREEDY)
    with pytest.raises(ValueError, match="prompt 1: audio: samples are int16"):
        llm.generate([clip(SOUNDS[0]), clip((SOUNDS[1] * 1000).astype("i2"))], GREEDY)
    with pytest.raises(ValueError, match="maximum context length is 96"):
        llm.generate(clip(SOUNDS[0], prompt_token_ids=[2] * 96), GREEDY)
    assert_idle(llm)


def test_a_model_of_text_refuses_audio(tiny_folder: Callable[[str], Path]) -> None:
    llm = LLM(tiny_folder("llama"), num_threads=1, num_gpu_blocks_override=64, max_model_len=128)
    with pytest.raises(ValueError, match="multi_modal_data is not valid: this model takes text alone"):
        llm.generate(clip(SOUNDS[0], prompt="the cat"), GREEDY)
    assert llm.generate({"prompt": "the cat", "multi_modal_data": {}}, GREEDY)


def test_a_folder_without_the_feature_extraction_says_so(whisper_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whisper_folder, tmp_path / "model"))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="preprocessor_config.json is missing"):
        LLM(folder, num_threads=1)


def test_bfloat16_stays_finite(make: Callable[..., LLM]) -> None:
    got = transcripts(make(dtype="bfloat16"), [clip(sound) for sound in SOUNDS[:3]])
    assert [len(ids) for ids in got] == [NEW_TOKENS] * 3
