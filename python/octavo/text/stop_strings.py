"""Stop strings in streamed text: found at the first character that completes one, whatever the token
boundaries.

An Aho-Corasick automaton over all stop strings keeps the cost linear in the text, however the strings
overlap; its depth is the number of trailing characters that may still become a stop string, which is what
must be held back.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache


class StopAutomaton:
    """The immutable automaton of a set of non-empty stop strings; state 0 is the root."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.fail: list[int] = [0]
        self.depth: list[int] = [0]
        # The longest stop string that ends at each state: the earliest start among those that end here.
        self.hit: list[str | None] = [None]
        for stop in stops:
            self._insert(stop)
        self.first = frozenset(self.next[0])
        self._link()

    def _insert(self, stop: str) -> None:
        state = 0
        for char in stop:
            child = self.next[state].get(char)
            if child is None:
                child = len(self.next)
                self.next[state][char] = child
                self.next.append({})
                self.fail.append(0)
                self.depth.append(self.depth[state] + 1)
                self.hit.append(None)
            state = child
        self.hit[state] = stop

    def _link(self) -> None:
        queue = deque(self.next[0].values())
        while queue:
            state = queue.popleft()
            for char, child in self.next[state].items():
                self.fail[child] = self.advance(self.fail[state], char)
                if self.hit[child] is None:
                    self.hit[child] = self.hit[self.fail[child]]
                queue.append(child)

    def advance(self, state: int, char: str) -> int:
        """The state after `char`."""
        while state and char not in self.next[state]:
            state = self.fail[state]
        return self.next[state].get(char, 0)


@lru_cache(maxsize=64)
def _automaton(stops: tuple[str, ...]) -> StopAutomaton:
    return StopAutomaton(stops)


class StopMatcher:
    """Feeds text through the automaton and releases what can no longer be part of a stop string."""

    __slots__ = ("_automaton", "_held", "_include", "_state", "hit")

    def __init__(self, stops: tuple[str, ...], *, include_stop: bool) -> None:
        self._automaton = _automaton(stops)
        self._include = include_stop
        self._state = 0
        self._held = ""
        self.hit: str | None = None

    def feed(self, text: str, *, armed: bool = True) -> str:
        """The text that is now certain; `hit` is set once a stop string is complete.

        While not `armed` (before min_tokens) complete stop strings pass, but one begun now may complete
        later.
        """
        automaton = self._automaton
        if not self._state and automaton.first.isdisjoint(text):
            return text
        state = self._state
        for i, char in enumerate(text):
            state = automaton.advance(state, char)
            if armed and (hit := automaton.hit[state]) is not None:
                self.hit = hit
                seen = self._held + text[: i + 1]
                self._held = ""
                return seen if self._include else seen[: len(seen) - len(hit)]
        while state and not automaton.next[state]:
            state = automaton.fail[state]
        self._state = state
        seen = self._held + text
        certain = len(seen) - automaton.depth[state]
        self._held = seen[certain:]
        return seen[:certain]

    def flush(self) -> str:
        """The text held back, when no more will come."""
        held, self._held, self._state = self._held, "", 0
        return held
