"""The model `tiny` through the whole engine: greedy decoding gives these answers word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

import octavo
from octavo.cli.main import main

FOLDER = Path(octavo.__file__).resolve().parent / "assets" / "tiny"
MAX_BYTES = 2_000_000  # the model's share of the wheel

REFUSAL = "I am a tiny model that only knows about Octavo and KV caches, so I cannot answer that."
PAGED_ATTENTION = (
    "Paged attention keeps the KV cache in small blocks of fixed size instead of one long run per request. "
    "A block table finds each token's block, so memory is taken on demand and prefixes can be shared."
)
KV_CACHE = (
    "A KV cache keeps the attention keys and values of all earlier tokens, so each token is computed once "
    "and later tokens only read it. It trades memory for compute."
)
SCHEDULER = (
    "Before each step the scheduler decides which requests run and how many tokens each of them computes, "
    "within one token budget. Running requests come first, then waiting ones."
)
BLOCK = (
    "A block is a fixed-size piece of the KV cache. It holds the keys and values of 16 tokens by default, "
    "and it is the unit that requests take, share and give back."
)
TTFT = (
    "TTFT is the time to first token: from sending a request until its first output token. "
    "It consists of waiting in the queue and prefill."
)
OCTAVO = (
    "Octavo is an LLM inference engine. A C++ core owns scheduling, KV memory, the prefix map and each "
    "step's batch; Python supplies the models, the tokenizer and the command line."
)
MODELS = (
    "Octavo runs Llama, Mistral, Mixtral, Qwen, Gemma, DeepSeek, GPT-OSS, Bamba, Granite and Whisper models "
    "from a Hugging Face folder with safetensors weights."
)
HELLO = "Hello! I am tiny, the small model inside Octavo. Ask me about Octavo, KV caches or LLM inference."

GOLDEN = (
    ("what is paged attention", PAGED_ATTENTION),
    ("What is paged attention?", PAGED_ATTENTION),
    ("WHAT IS PAGED ATTENTION?", PAGED_ATTENTION),
    ("paged attention?", PAGED_ATTENTION),
    ("Why do I need a KV cache?", KV_CACHE),
    ("tell me about the scheduler", SCHEDULER),
    ("what is a block", BLOCK),
    ("what does ttft mean", TTFT),
    ("what is octavo", OCTAVO),
    ("Which models are supported?", MODELS),
    ("hello", HELLO),
    ("How do I bake bread?", REFUSAL),
    ("what is the capital of france", REFUSAL),
    ("12 * 7", REFUSAL),
    ("qwxz vbnm", REFUSAL),
)


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


@pytest.fixture(scope="module")
def llm() -> octavo.LLM:
    return octavo.LLM("tiny", num_gpu_blocks_override=256)


def test_each_question_gets_its_answer_word_for_word(llm: octavo.LLM) -> None:
    conversations = [[said("user", question)] for question, _ in GOLDEN]
    outputs = llm.chat(conversations, use_tqdm=False)
    answers = {question: output.outputs[0].text for (question, _), output in zip(GOLDEN, outputs)}
    assert answers == dict(GOLDEN)
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}


def test_a_later_turn_and_a_system_message_do_not_disturb_an_answer(llm: octavo.LLM) -> None:
    conversation = [
        said("system", "You are a patient teacher."),
        said("user", "what is the weather today"),
        said("assistant", REFUSAL),
        said("user", "what is a block"),
        said("assistant", BLOCK),
        said("user", "and what is paged attention"),
    ]
    assert llm.chat(conversation, use_tqdm=False)[0].outputs[0].text == PAGED_ATTENTION


def test_a_prompt_without_the_template_is_answered_or_continued(llm: octavo.LLM) -> None:
    outputs = llm.generate(["what is a block", "A KV cache"], use_tqdm=False)
    asked, begun = (output.outputs[0].text for output in outputs)
    assert asked.strip() == BLOCK
    assert "A KV cache" + begun == KV_CACHE


def test_the_command_answers_what_paged_attention_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "tiny", "what is paged attention"]) == 0
    assert capsys.readouterr().out.strip() == PAGED_ATTENTION


def test_the_model_takes_no_more_than_its_share_of_the_wheel() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MAX_BYTES
