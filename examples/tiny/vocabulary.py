"""The tokenizer of the model `tiny`: byte-level BPE, a chat template, and conversations as token ids."""

import json
from collections.abc import Iterable
from pathlib import Path

from questions import Turn
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
MARKERS = (PAD, SYSTEM, USER, ASSISTANT, END)
IGNORED = -100  # label of a token that is not trained on

Sequence = tuple[list[int], list[int]]  # token ids and their labels

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('tiny knows the roles system, user and assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] | trim -}}"
    "{%- else -%}{%- for part in message['content'] -%}{{- part['text'] | trim -}}{%- endfor -%}{%- endif -%}"
    "{{- '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train_tokenizer(text: Iterable[str], size: int) -> Tokenizer:
    """A byte-level BPE of `size` tokens, markers included, that encodes any text without loss."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(marker, special=True, normalized=False) for marker in MARKERS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class Encoder:
    """Turns conversations into token ids and labels; only answers and their end marker carry labels."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # The trainer gives the markers the first ids, in their order.
        self._marker = {marker: place for place, marker in enumerate(MARKERS)}

    def pad_id(self) -> int:
        return self._marker[PAD]

    def end_id(self) -> int:
        return self._marker[END]

    def conversation(
        self, system: str | None, turns: list[Turn], answer_tokens: int | None = None
    ) -> Sequence:
        """Ids and labels of a conversation in the form of the chat template, its answers cut if asked."""
        end = self._marker[END]
        ids: list[int] = []
        if system is not None:
            ids += [self._marker[SYSTEM], *self._text(system), end]
        labels = [IGNORED] * len(ids)
        for turn in turns:
            prompt = [self._marker[USER], *self._text(turn.question), end, self._marker[ASSISTANT]]
            answer = [*self._text(turn.answer), end][:answer_tokens]
            ids += prompt + answer
            labels += [IGNORED] * len(prompt) + answer
        return ids, labels

    def plain(self, question: str | None, answer: str, answer_tokens: int | None = None) -> Sequence:
        """Ids and labels of text without chat markers: an answer, perhaps on the line after its question."""
        prompt = self._text(question) if question is not None else []
        tail = [*self._text(answer if question is None else "\n" + answer), self._marker[END]][:answer_tokens]
        return prompt + tail, [IGNORED] * len(prompt) + tail

    def _text(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text.strip(" "), add_special_tokens=False).ids
        return ids
