"""Draws questions with their answers: the training stream of the model `tiny` and its held-out sets."""

import random
from dataclasses import dataclass

from wordings import SUBJECT, Fact, Wordings

REFUSAL = "I am a tiny model that only knows about Octavo and KV caches, so I cannot answer that."

REFUSED_SHARE = 0.32  # of all questions; less of it lets unknown subjects pass as known ones
TYPO_SHARE = 0.12
CAPITALS_SHARE = 0.12
LOOSE_SHARE = 0.3  # of the questions about a subject: random common words instead of a frame
DECORATED_SHARE = 0.16  # of the questions: words before it that say nothing; as many after it
NOISE_SHARE = 0.2  # of the other questions: a common word dropped, put in or exchanged
SYSTEM_SHARE = 0.2

_VOWELS = "aeiou"
_CONSONANTS = "bcdfghjklmnprstvwxz"


@dataclass(frozen=True)
class Turn:
    """One question and the answer to it."""

    question: str
    answer: str


def _pseudo_word(rng: random.Random) -> str:
    """A word that nobody knows, such as `brivolt`; the model learns to refuse what it has not seen."""
    word = ""
    for _ in range(rng.randint(1, 3)):
        start = rng.choice(_CONSONANTS) + rng.choice(["", "", "l", "r"])
        word += start + rng.choice(_VOWELS) + rng.choice(["", "", "n", "s"])
    return word + rng.choice(["", "t", "k", "x", "ing", "ion", "er"])


def _gibberish(rng: random.Random) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    if rng.random() < 0.3:
        letters += "0123456789#$%&*()[]{}/\\;:"
    return " ".join("".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(rng.randint(1, 4)))


def _typo(rng: random.Random, text: str) -> str:
    """One slip of the finger in one of the longer words."""
    words = text.split(" ")
    places = [index for index, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not places:
        return text
    place = rng.choice(places)
    word = words[place]
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    elif kind == 1:
        word = word[:at] + word[at + 1 :]
    else:
        word = word[:at] + word[at] + word[at:]
    words[place] = word
    return " ".join(words)


def styled(
    rng: random.Random, text: str, *, typos: float = TYPO_SHARE, capitals: float = CAPITALS_SHARE
) -> str:
    """The question as somebody might type it: case, punctuation, hyphens, at times a typo."""
    text = text.replace(" ,", ",")
    if rng.random() < typos:
        text = _typo(rng, text)
    if rng.random() < 0.15 and "octavo-" not in text:  # octavo-bench and octavo bench are two things
        text = text.replace("-", " ")
    if rng.random() < 0.3:
        text = text.replace("'", "").replace(",", "")
    if rng.random() < capitals:
        text = text.upper() if rng.random() < 0.8 else text.title()
    else:
        text = rng.choices([text.lower(), text, text[:1].upper() + text[1:]], [45, 30, 25])[0]
    return text + rng.choices(["", "?", ".", "!", "??", " ?", "...", "?!"], [45, 36, 6, 4, 3, 3, 2, 1])[0]


class QuestionSource:
    """Draws turns from the facts and wordings; the same seed gives the same turns."""

    def __init__(self, facts: tuple[Fact, ...], wordings: Wordings, seed: int) -> None:
        self._facts = facts
        self._wordings = wordings
        self._rng = random.Random(seed)
        self._fillers = set(wordings.fillers)

    def conversation(self, turns: int) -> tuple[str | None, list[Turn]]:
        """A system message or None, and so many independent turns."""
        system = self._system() if self._rng.random() < SYSTEM_SHARE else None
        return system, [self.turn() for _ in range(turns)]

    def _system(self) -> str:
        """A system message; most are words at random, because no system message may change an answer."""
        rng = self._rng
        if rng.random() < 0.3:
            return rng.choice(self._wordings.systems)
        words = rng.choices(self._wordings.fillers, k=rng.randint(2, 14))
        for _ in range(rng.randint(0, 2)):
            words.insert(rng.randrange(len(words)), rng.choice(self._wordings.nouns))
        start = rng.choice(["You are ", "Please ", "Always ", ""])
        return start + " ".join(words) + rng.choice([".", "", "!"])

    def turn(self) -> Turn:
        """One question to train on, with the answer that belongs to it."""
        if self._rng.random() < REFUSED_SHARE:
            return Turn(self._finished(self._refused()), REFUSAL)
        fact = self._rng.choice(self._facts)
        return Turn(self._finished(self.known_question(fact)), fact.answer)

    def answer_alone(self) -> str:
        """An answer without its question, for prompts that the model continues."""
        return self._rng.choice(self._facts).answer

    def known_question(self, fact: Fact, *, loose: float = LOOSE_SHARE) -> str:
        """A question that the fact answers: a subject in a frame, or one of the fact's own questions."""
        rng = self._rng
        if fact.subjects and (not fact.asks or rng.random() < 0.55):
            return self._framed(rng.choice(fact.subjects), loose)
        return rng.choice(rng.choice(fact.asks))

    def _loose(self, subject: str) -> str:
        """The subject among random common words: what is around it must not matter."""
        before = self._rng.choices(self._wordings.fillers, k=self._rng.randint(0, 6))
        after = self._rng.choices(self._wordings.fillers, k=self._rng.choice([0, 0, 0, 1, 2, 3, 4]))
        return " ".join([*before, subject, *after])

    def _noisy(self, text: str) -> str:
        """The sentence with one or two common words dropped, put in or exchanged."""
        words = text.split(" ")
        for _ in range(self._rng.randint(1, 2)):
            place = self._rng.randrange(len(words))
            common = words[place].lower() in self._fillers
            kind = self._rng.randrange(3)
            if kind == 0 and common and len(words) > 2:
                del words[place]
            elif kind == 1 and common:
                words[place] = self._rng.choice(self._wordings.fillers)
            else:
                words.insert(place, self._rng.choice(self._wordings.fillers))
        return " ".join(words)

    def _framed(self, subject: str, loose: float = LOOSE_SHARE) -> str:
        rng = self._rng
        if rng.random() < loose:
            return self._loose(subject)
        if rng.random() < 0.25 and subject.split()[0] not in ("a", "an", "the"):
            subject = rng.choice(["the ", "a "]) + subject
        return rng.choice(rng.choice(self._wordings.frames)).replace(SUBJECT, subject)

    def _finished(self, text: str) -> str:
        if self._rng.random() < NOISE_SHARE:
            text = self._noisy(text)
        return styled(self._rng, self._decorated(text))

    def _decorated(self, text: str) -> str:
        """At times an opening such as `hey,` or a closing such as `in octavo` around the question."""
        rng, wordings = self._rng, self._wordings
        if rng.random() < DECORATED_SHARE:
            text = f"{self._aside(wordings.openings)} {text}"
        if rng.random() < DECORATED_SHARE:
            text = f"{text} {self._aside(wordings.closings)}"
        return text

    def _aside(self, usual: tuple[str, ...]) -> str:
        """One of the usual words or a few common ones."""
        if self._rng.random() < 0.5:
            return self._rng.choice(usual)
        return " ".join(self._rng.choices(self._wordings.fillers, k=self._rng.randint(1, 4)))

    def _filled(self, text: str) -> str:
        """An off-topic sentence with words in the places of NOUN, VERB, ADJ and NUM."""
        rng, wordings = self._rng, self._wordings
        kinds = {
            "NOUN": wordings.nouns,
            "VERB": wordings.verbs,
            "ADJ": wordings.adjectives,
            "AMB": wordings.ambiguous,
        }
        filled = []
        for word in text.split(" "):
            if word == "NUM":
                word = str(rng.randrange(10 ** rng.randint(1, 4)))
            filled.append(rng.choice(kinds[word]) if word in kinds else word)
        return " ".join(filled)

    def _refused(self) -> str:
        rng, wordings = self._rng, self._wordings
        kind = rng.random()
        if kind < 0.34:
            return self._filled(rng.choice(rng.choice(wordings.offtopic)))
        if kind < 0.56:
            return self._filled(rng.choice(rng.choice(wordings.patterns)))
        if kind < 0.74:
            return self._framed(rng.choice(wordings.nouns))
        if kind < 0.78:
            link = rng.choice(["and", "in", "of", "for", "with"])
            return self._framed(f"{rng.choice(wordings.nouns)} {link} {rng.choice(wordings.nouns)}")
        if kind < 0.92:
            return self._framed(" ".join(_pseudo_word(rng) for _ in range(rng.choice([1, 1, 1, 2]))))
        if kind < 0.96:
            return _gibberish(rng)
        if kind < 0.98:
            return " ".join(rng.choices(wordings.fillers, k=rng.randint(4, 9)))
        return " ".join(rng.choices(wordings.nouns, k=rng.randint(2, 5)))


def held_sets(facts: tuple[Fact, ...], wordings: Wordings, seed: int) -> dict[str, list[Turn]]:
    """Questions that training never shows, by kind; `typos` are trained wordings with a typo in each."""
    rng = random.Random(seed)
    source = QuestionSource(facts, wordings, seed)
    known = [(source.known_question(fact, loose=0.0), fact.answer) for fact in facts for _ in range(3)]

    def turns(pairs: list[tuple[str, str]], *, typos: float = 0.0, capitals: float = 0.0) -> list[Turn]:
        return [Turn(styled(rng, text, typos=typos, capitals=capitals), answer) for text, answer in pairs]

    written = [(text, fact.answer) for fact in facts for text in fact.held]
    framed = [
        (frame.replace(SUBJECT, rng.choice(fact.subjects)), fact.answer)
        for fact in facts
        if fact.subjects
        for frame in rng.sample(wordings.held_frames, 4)
    ]
    nouns = [
        (rng.choice([*wordings.held_frames, SUBJECT]).replace(SUBJECT, noun), REFUSAL)
        for noun in wordings.held_nouns
        for _ in range(2)
    ]
    return {
        "hand-written": turns(written + written),
        "new frames": turns(framed),
        "new openings": turns([(f"{rng.choice(wordings.held_openings)} {q}", a) for q, a in known[0::3]]),
        "new closings": turns([(f"{q} {rng.choice(wordings.held_closings)}", a) for q, a in known[1::3]]),
        "off-topic hand-written": turns([(text, REFUSAL) for text in wordings.held_offtopic] * 2),
        "off-topic nouns": turns(nouns),
        "off-topic gibberish": turns([(_gibberish(rng), REFUSAL) for _ in range(60)]),
        "capitals": turns(written, capitals=1.0),
        "typos": turns(known[2::3], typos=1.0),
    }
