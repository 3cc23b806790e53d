"""A conversation with a model: its messages, its sampling parameters, and one answer at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from octavo.cli.stream import Answer, stream

if TYPE_CHECKING:
    from octavo import LLM, SamplingParams


class Conversation:
    """Messages are kept only when an answer came, so that a refused question changes nothing."""

    def __init__(self, llm: LLM, sampling: Mapping[str, Any], *, system: str | None = None) -> None:
        self._llm = llm
        self._tokenizer = llm.get_tokenizer()
        self._turns: list[dict[str, str]] = []
        self.sampling = dict(sampling)
        self.system = system
        self.answers: list[Answer] = []

    def reset(self) -> None:
        """Forgets the turns; the system message and the parameters stay."""
        self._turns.clear()

    def ask(self, question: str) -> Iterator[str]:
        """Yields the answer's text as it comes; the finished `Answer` is `answers[-1]`.

        Raises ValueError if the conversation no longer fits the context or the template refuses it.
        """
        asked = [*self._turns, {"role": "user", "content": question}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        prompt = self._tokenizer.apply_chat_template([*system, *asked], add_generation_prompt=True)
        answer = Answer()
        yield from stream(self._llm, {"prompt_token_ids": prompt}, self._params(), answer)
        self.answers.append(answer)
        if answer.text:
            self._turns = [*asked, {"role": "assistant", "content": answer.text}]

    def _params(self) -> SamplingParams:
        """The sampling parameters; without max_tokens an answer may fill what is left of the context."""
        from octavo.sampling_params import RequestOutputKind, SamplingParams

        options = {"max_tokens": None, **self.sampling, "output_kind": RequestOutputKind.DELTA}
        return SamplingParams(**options)

    def set_sampling(self, name: str, value: Any) -> None:
        """Changes one parameter for the answers to come. Raises ValueError for a value out of range."""
        from octavo.sampling_params import SamplingParams

        changed = self.sampling | {name: value}
        SamplingParams(**changed)
        self.sampling = changed

    def sampling_in_use(self) -> dict[str, Any]:
        """The parameters that differ from the library's defaults, and the four people ask about."""
        from octavo.sampling_params import SamplingParams

        usual = ("temperature", "top_p", "top_k", "max_tokens")
        params, defaults = self._params(), SamplingParams()
        shown = {}
        for field in dataclasses.fields(SamplingParams):
            value = getattr(params, field.name)
            differs = field.name in usual or value != getattr(defaults, field.name)
            if differs and field.name != "output_kind":
                shown[field.name] = value
        return shown
