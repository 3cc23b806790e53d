from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo import LLM, SamplingParams, config
from octavo.engine import options
from octavo.engine.progress import ProgressBar
from octavo.errors import CapacityError, ConfigError, ModelError, WeightsError
from octavo.sampling_params import RequestOutputKind

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
FOREVER = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is a block"}]


@pytest.fixture(scope="module")
def llm(make_llm: Callable[..., LLM]) -> LLM:
    return make_llm()


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a model that a test may damage."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))


def assert_idle(llm: LLM) -> None:
    stats = llm.llm_engine.core.stats()
    assert (stats["running"], stats["waiting"]) == (0, 0)
    assert stats["free_blocks"] == stats["total_blocks"]
    assert not llm.llm_engine.has_unfinished_requests()
    llm.llm_engine.core.check_invariants()


def test_results_come_in_the_order_of_the_prompts_in_any_form(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    texts = ["the cat", "paged attention cache", "a", "river stone under"]
    ids = [tokenizer.encode(text) for text in texts]
    prompts: list[Any] = [texts[0], {"prompt": texts[1]}, ids[2], {"prompt_token_ids": ids[3]}]
    params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (9, 1, 5, 3)]
    outputs = llm.generate(prompts, params)
    assert [output.prompt_token_ids for output in outputs] == ids
    assert [output.prompt for output in outputs] == [texts[0], texts[1], None, None]
    assert [len(output.outputs[0].token_ids) for output in outputs] == [9, 1, 5, 3]
    assert all(output.finished and output.metrics is not None for output in outputs)
    for text, output in zip(texts, outputs):
        single = llm.generate(text, SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))[0]
        expected = list(single.outputs[0].token_ids)
        assert list(output.outputs[0].token_ids) == expected[: len(output.outputs[0].token_ids)]
    assert llm.generate([]) == []


def test_one_set_of_parameters_serves_many_prompts_and_stays_as_it_was(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=2, output_kind=RequestOutputKind.DELTA)
    assert [len(o.outputs[0].token_ids) for o in llm.generate(["a", "b"], params)] == [2, 2]
    assert params.output_kind is RequestOutputKind.DELTA
    with pytest.raises(ValueError, match="sampling_params='1 entries' is not valid: .* each of 2 prompts"):
        llm.generate(["a", "b"], [params])
    with pytest.raises(TypeError, match="sampling_params must be SamplingParams"):
        llm.generate("a", {"temperature": 0})  # type: ignore[arg-type]


def test_the_models_own_recommendation_is_the_default(folder: Path) -> None:
    recommended = {"temperature": 0.25, "top_p": 0.5, "top_k": 7, "max_new_tokens": 5, "eos_token_id": [3, 1]}
    (folder / "generation_config.json").write_text(json.dumps(recommended))
    llm = LLM(folder, max_model_len=128, num_gpu_blocks_override=32, num_threads=1)
    params = llm.get_default_sampling_params()
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.25, 0.5, 7, 5)
    assert len(llm.generate("the cat")[0].outputs[0].token_ids) <= 5
    (folder / "generation_config.json").write_text(json.dumps({**recommended, "do_sample": False}))
    assert llm.get_default_sampling_params().is_greedy
    (folder / "generation_config.json").write_text(json.dumps({**recommended, "top_p": 7}))
    with pytest.raises(ValueError, match=r"generation_config\.json: top_p=7.0 is not valid"):
        llm.generate("the cat")


def test_chat_is_generate_on_the_templates_text(llm: LLM) -> None:
    text = llm.get_tokenizer().apply_chat_template(CHAT, tokenize=False)
    assert isinstance(text, str)
    ids = llm.get_tokenizer().encode(text, add_special_tokens=False)
    expected = llm.generate({"prompt_token_ids": ids}, GREEDY)[0]
    output = llm.chat(CHAT, GREEDY)[0]
    assert output.prompt == text
    assert output.prompt_token_ids == ids
    assert output.outputs[0].text == expected.outputs[0].text
    assert len(llm.chat([CHAT, CHAT[1:]], GREEDY)) == 2
    continued = llm.chat(
        [*CHAT, {"role": "assistant", "content": "A block is"}],
        GREEDY,
        add_generation_prompt=False,
        continue_final_message=True,
    )[0]
    assert str(continued.prompt).endswith("A block is")


def test_chat_errors_are_value_errors_in_the_templates_words(llm: LLM) -> None:
    with pytest.raises(ValueError, match="messages is empty"):
        llm.chat([], GREEDY)
    with pytest.raises(ValueError, match="roles must alternate"):
        llm.chat(CHAT, GREEDY, chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="chat_template_kwargs.*pass tokenize to chat"):
        llm.chat(CHAT, GREEDY, chat_template_kwargs={"tokenize": True})
    with pytest.raises(ValueError, match=r"line 1"):
        llm.chat(CHAT, GREEDY, chat_template="{% if %}")
    assert_idle(llm)


@pytest.mark.parametrize(
    ("prompts", "params", "error", "message"),
    [
        ("", None, ValueError, "prompt has no tokens"),
        ([[]], None, ValueError, "prompt is empty"),
        (["fine", [512]], None, ValueError, "prompt 1: token id 512 at position 0 is out of range"),
        (["fine", [-1]], None, ValueError, "prompt 1: token id -1"),
        ([[5] * 512], None, ValueError, "maximum context length is 512 tokens.*prompt has 512 tokens"),
        (["fine", None], None, TypeError, "prompt 1 must be a string"),
        (["a", "b"], {"stop_token_ids": [512]}, ValueError, "stop_token_ids"),
        (["a", "b"], {"stop_token_ids": [-5]}, ValueError, "stop_token_ids"),
        (["a", "b"], {"logit_bias": {600: 1.0}}, ValueError, "logit_bias"),
        (["a", "b"], {"allowed_token_ids": [600]}, ValueError, "allowed_token_ids"),
        (["a", "b"], {"logprobs": 21}, ValueError, "logprobs=21"),
        (["a", "b"], {"bad_words": ["word " * 200] * 8}, ValueError, "bad_words"),
        (["a", "b"], {"truncate_prompt_tokens": 600}, ValueError, "truncate_prompt_tokens=600"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(
    llm: LLM, prompts: Any, params: dict[str, Any] | None, error: type[Exception], message: str
) -> None:
    steps = llm.llm_engine.core.stats()["steps"]
    with pytest.raises(error, match=message):
        llm.generate(prompts, SamplingParams(**(params or {})))
    assert llm.llm_engine.core.stats()["steps"] == steps
    assert_idle(llm)


def test_unknown_keywords_name_the_nearest(llm: LLM, folder: Path) -> None:
    with pytest.raises(TypeError, match=r"'max_modellen' \(did you mean 'max_model_len'\?\)"):
        LLM(folder, max_modellen=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no option 'xyzzy'$"):
        LLM(folder, xyzzy=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="temprature"):
        llm.generate("a", SamplingParams(temprature=0))  # type: ignore[call-arg]


def test_vllms_keywords_warn_once_or_say_what_is_supported(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "_warned", set())
    sizes = {"max_model_len": 128, "num_gpu_blocks_override": 32, "num_threads": 1}
    with pytest.warns(UserWarning, match="swap_space is accepted for vLLM's sake"):
        LLM(folder, swap_space=4, **sizes)  # type: ignore[call-arg]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LLM(folder, swap_space=4, **sizes)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="tensor_parallel_size=2 is not valid: Octavo supports 1"):
        LLM(folder, tensor_parallel_size=2)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="quantization='awq' is not valid"):
        LLM(folder, quantization="awq")
    with pytest.raises(ValueError, match="max_logprobs='many'"):
        LLM(folder, max_logprobs="many")  # type: ignore[arg-type]


def test_the_typed_keywords_are_those_of_the_configuration() -> None:
    assert set(options.LLMOptions.__annotations__) == {*config.option_names(), *options.OWN} - {"model"}


def test_a_larger_max_logprobs_allows_the_whole_vocabulary(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(max_logprobs=-1)
    position = llm.generate("a", SamplingParams(max_tokens=1, logprobs=-1))[0].outputs[0].logprobs
    assert position is not None
    assert len(position[0]) == 512


def test_broken_folders_are_refused_by_file(folder: Path) -> None:
    with pytest.raises(ConfigError, match="model='/nowhere' is not valid"):
        LLM("/nowhere")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "architectures": ["LlamaForCausalLMM"]}))
    with pytest.raises(ModelError, match="LlamaForCausalLMM.*did you mean 'LlamaForCausalLM'"):
        LLM(folder)
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 4}))
    with pytest.raises(WeightsError, match=r"layers\.3"):
        LLM(folder, max_model_len=128)
    (folder / "config.json").write_text(json.dumps(settings))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        LLM(folder, max_model_len=128)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        LLM(folder, max_model_len=128)
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json.*skip_tokenizer_init=True"):
        LLM(folder, max_model_len=128)


def test_an_llm_without_a_tokenizer_works_on_ids(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    llm = LLM(folder, max_model_len=128, num_gpu_blocks_override=32, num_threads=1, skip_tokenizer_init=True)
    output = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=3, ignore_eos=True))[0]
    assert (len(output.outputs[0].token_ids), output.outputs[0].text) == (3, "")
    with pytest.raises(ValueError, match="has no tokenizer; give prompt_token_ids"):
        llm.generate("text")
    with pytest.raises(ValueError, match="skip_tokenizer_init=True"):
        llm.get_tokenizer()


def test_a_pool_too_small_for_one_request_is_refused_with_the_numbers(make_llm: Callable[..., LLM]) -> None:
    with pytest.raises(CapacityError, match="max_model_len"):
        make_llm(max_model_len=2048, num_gpu_blocks_override=10)


def interrupt_at_step(llm: LLM, monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    run, count = llm.llm_engine.runner.step, [0]

    def counted(plan: Any) -> Any:
        count[0] += 1
        if count[0] == step:
            act()
        return run(plan)

    monkeypatch.setattr(llm.llm_engine.runner, "step", counted)


@pytest.fixture
def default_sigint() -> Iterator[None]:
    """Python's own handler, which a test run that was started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_sigint")
@pytest.mark.parametrize("how", ["signal", "inside-a-step"])
def test_ctrl_c_in_the_middle_of_a_batch_leaves_the_llm_usable(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    before = [list(o.outputs[0].token_ids) for o in llm.generate(["the cat", "a dog"], GREEDY)]

    def raise_inside() -> None:
        raise KeyboardInterrupt

    act = raise_inside if how == "inside-a-step" else lambda: os.kill(os.getpid(), signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_at_step(llm, patch, 5, act)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["the cat", "a dog", "river stone"] * 20, FOREVER, use_tqdm=False)
    assert_idle(llm)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [list(o.outputs[0].token_ids) for o in llm.generate(["the cat", "a dog"], GREEDY)] == before


def test_a_step_that_fails_is_reported_in_its_requests_only(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise MemoryError("not enough memory")

    with monkeypatch.context() as patch:
        interrupt_at_step(llm, patch, 3, fail)
        output = llm.generate("the cat", FOREVER)[0]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == (
        "error",
        "MemoryError: not enough memory",
    )
    assert len(output.outputs[0].token_ids) == 2
    assert_idle(llm)
    assert llm.generate("the cat", GREEDY)[0].outputs[0].finish_reason == "length"


def test_generate_works_in_a_thread_that_gets_no_signals(llm: LLM) -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(llm.generate(["the cat"], GREEDY)))
    thread.start()
    thread.join()
    assert results[0].finished


def test_generate_refuses_to_run_beside_unfinished_requests(llm: LLM) -> None:
    llm.llm_engine.add_request("own", "the cat", GREEDY)
    with pytest.raises(RuntimeError, match=r"1 requests of llm_engine\.add_request are unfinished"):
        llm.generate("a dog", GREEDY)
    llm.llm_engine.abort_request("own")
    assert llm.llm_engine.step()[0].outputs[0].finish_reason == "abort"
    assert_idle(llm)


def test_urgent_requests_run_first_under_the_priority_policy(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(scheduling_policy="priority", max_num_seqs=1)
    outputs = llm.generate(["a", "b", "c"], GREEDY, priority=[3, 2, 1])
    ends = [output.metrics.first_token_ts or 0.0 for output in outputs if output.metrics]
    assert ends[2] < ends[1] < ends[0]
    with pytest.raises(ValueError, match="priority='2 entries'"):
        llm.generate(["a", "b", "c"], GREEDY, priority=[1, 2])


def test_metrics_and_the_prefix_cache_can_be_read_and_reset(llm: LLM) -> None:
    prompt = "the cat sits on the river stone and the dog runs over the paged attention cache " * 2
    llm.generate(prompt, GREEDY)
    assert (llm.generate(prompt, GREEDY)[0].num_cached_tokens or 0) >= 16
    assert llm.reset_prefix_cache()
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 0
    names = {metric.name for metric in llm.get_metrics()}
    assert {"octavo:num_requests_running", "octavo:prefix_cache_hits", "octavo:generation_tokens"} <= names


def test_the_bar_stays_off_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(10, enabled=True)
    bar._start -= 10
    bar.update(requests=1, tokens=5)
    bar.close()
    assert capsys.readouterr() == ("", "")


def test_the_bar_shows_on_a_terminal_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = ProgressBar(10, enabled=True)
    bar.update(requests=1, tokens=5)
    assert bar._bar is None
    bar._start -= 10
    bar._drawn -= 10
    bar.update(requests=1, tokens=5)
    assert bar._bar is not None
    bar.close()
    assert bar._bar is None


def test_importing_octavo_and_its_plain_types_needs_no_torch() -> None:
    code = (
        "import sys, octavo; octavo.SamplingParams(); octavo.RequestOutput; octavo.TextPrompt\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert octavo.__version__
