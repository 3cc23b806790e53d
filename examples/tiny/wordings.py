"""Reads the facts and wordings of the model `tiny` from the text files beside this module.

A pattern is a line with alternatives in braces, `{how do I|how to} install it`; it stands for every
sentence that the alternatives spell. `{x}` is a placeholder for a subject.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
SUBJECT = "\0"  # stands for {x} while braces are expanded, so that it is not taken for a group

_INNERMOST = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Fact:
    """One answer, the subjects it explains, and the questions it answers."""

    name: str
    answer: str
    subjects: tuple[str, ...]
    asks: tuple[tuple[str, ...], ...]  # one tuple of sentences per pattern
    held: tuple[str, ...]  # hand-written questions that are never trained on


@dataclass(frozen=True)
class Wordings:
    """Everything that varies around the facts; `held` parts are for measuring only."""

    frames: tuple[tuple[str, ...], ...]
    held_frames: tuple[str, ...]
    openings: tuple[str, ...]
    held_openings: tuple[str, ...]
    closings: tuple[str, ...]
    held_closings: tuple[str, ...]
    offtopic: tuple[tuple[str, ...], ...]
    patterns: tuple[tuple[str, ...], ...]  # off-topic sentences with places such as NOUN
    held_offtopic: tuple[str, ...]
    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    adjectives: tuple[str, ...]
    ambiguous: tuple[str, ...]
    held_nouns: tuple[str, ...]
    fillers: tuple[str, ...]
    systems: tuple[str, ...]


@dataclass
class _Draft:
    """A fact while its lines are being read."""

    answer: str = ""
    subjects: list[str] = field(default_factory=list)
    asks: list[tuple[str, ...]] = field(default_factory=list)
    held: list[str] = field(default_factory=list)


def expand(pattern: str) -> tuple[str, ...]:
    """All sentences a pattern stands for, without repeats, with single spaces."""
    pending = [pattern.replace("{x}", SUBJECT)]
    sentences: dict[str, None] = {}
    while pending:
        text = pending.pop()
        group = _INNERMOST.search(text)
        if group is None:
            sentences[" ".join(text.split())] = None
            continue
        pending += [text[: group.start()] + part + text[group.end() :] for part in group[1].split("|")]
    return tuple(sentences)


def bare(text: str) -> str:
    """A question without case and punctuation: two questions with equal bare forms are the same wording."""
    return " ".join(re.sub(r"[^a-z0-9+*/=_-]+", " ", text.lower()).split())


def _lines(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()


def _sections(path: Path) -> dict[str, list[str]]:
    """Lines of a file by the `[section]` they stand in."""
    sections: dict[str, list[str]] = {}
    for line in _lines(path):
        if line.startswith("["):
            sections[line.strip("[]")] = []
        else:
            sections[next(reversed(sections))].append(line)
    return sections


def _words(path: Path) -> dict[str, list[str]]:
    """Words by section, where bars separate words."""
    return {key: "|".join(lines).split("|") for key, lines in _sections(path).items()}


def _fact(path: Path, name: str, lines: list[str]) -> Fact:
    draft = _Draft()
    for line in lines:
        key, _, value = line.partition(": ")
        if key == "names":
            draft.subjects += [subject.strip() for subject in value.split(" | ")]
        elif key == "ask":
            draft.asks.append(expand(value))
        elif key == "held":
            draft.held.append(value)
        elif key == "answer" and not draft.answer:
            draft.answer = value
        else:
            expected = "expected names, ask, held or one answer"
            raise ValueError(f"{path}: fact {name!r} has the line {line!r}; {expected}")
    if not draft.answer or not draft.held or not (draft.asks or draft.subjects):
        raise ValueError(f"{path}: fact {name!r} needs an answer, a held question and a question to train on")
    return Fact(name, draft.answer, tuple(draft.subjects), tuple(draft.asks), tuple(draft.held))


def load_facts() -> tuple[Fact, ...]:
    """All facts in file order. Raises ValueError where one wording would have two answers."""
    facts = [
        _fact(path, name, lines)
        for path in sorted((HERE / "facts").glob("*.txt"))
        for name, lines in _sections(path).items()
    ]
    owner: dict[str, str] = {}
    for fact in facts:
        for text in [*fact.subjects, *(ask for asks in fact.asks for ask in asks), *fact.held]:
            other = owner.setdefault(bare(text), fact.name)
            if other != fact.name:
                raise ValueError(f"{text!r} belongs to the facts {other!r} and {fact.name!r}; keep one")
    for fact in facts:
        trained = {bare(ask) for asks in fact.asks for ask in asks}
        for text in fact.held:
            if bare(text) in trained:
                raise ValueError(f"fact {fact.name!r} trains on its held question {text!r}; change one")
    return tuple(facts)


def load_wordings() -> Wordings:
    """Frames, openings, off-topic questions and the rest of the files in `wordings/`."""
    folder = HERE / "wordings"
    frames = _sections(folder / "frames.txt")
    offtopic = _sections(folder / "offtopic.txt")
    nouns = _words(folder / "nouns.txt")
    words = _words(folder / "words.txt")
    trained = {bare(text) for line in [*offtopic["train"], *nouns["train"]] for text in expand(line)}
    for text in [*offtopic["held"], *nouns["held"]]:
        if bare(text) in trained:
            raise ValueError(f"the held off-topic question {text!r} is also trained on; remove one")
    return Wordings(
        frames=tuple(expand(line) for line in frames["train"]),
        held_frames=tuple(text for line in frames["held"] for text in expand(line)),
        openings=tuple("|".join(frames["opening"]).split("|")),
        held_openings=tuple("|".join(frames["held opening"]).split("|")),
        closings=tuple("|".join(frames["closing"]).split("|")),
        held_closings=tuple("|".join(frames["held closing"]).split("|")),
        offtopic=tuple(expand(line) for line in offtopic["train"]),
        patterns=tuple(expand(line) for line in offtopic["patterns"]),
        held_offtopic=tuple(offtopic["held"]),
        nouns=tuple(nouns["train"]),
        verbs=tuple(words["verbs"]),
        adjectives=tuple(words["adjectives"]),
        ambiguous=tuple(words["ambiguous"]),
        held_nouns=tuple(nouns["held"]),
        fillers=tuple(word for line in _lines(folder / "fillers.txt") for word in line.split()),
        systems=tuple(_lines(folder / "system.txt")),
    )
