"""Blocks, prefix cache and block tables as lists and dicts: what docs/contracts/kv.md says, not how."""

from __future__ import annotations

from dataclasses import dataclass, field

UNHASHED, PROBATIONARY, PROVEN = range(3)
PROVEN_SHARE = 0.8

Content = tuple[str, tuple[int, ...]]  # salt, and all tokens up to the end of the block
Event = tuple[str, int, tuple[int, ...]]  # kind, block, tokens of a stored block


@dataclass
class Held:
    """What one running request holds."""

    blocks: list[int] = field(default_factory=list)
    published: int = 0


class NaiveCache:
    """One pool of blocks with its prefix cache."""

    def __init__(self, num_blocks: int, block_size: int, caching: bool) -> None:
        self.block_size = block_size
        self.caching = caching
        self.num_blocks = num_blocks
        self.refs = [1] + [0] * (num_blocks - 1)
        self.kind = [UNHASHED] * num_blocks
        self.free: list[list[int]] = [list(range(1, num_blocks)), [], []]  # the next victim first
        self.copies: dict[Content, list[int]] = {}  # the one that a hit gives first
        self.content: dict[int, Content] = {}
        self.events: list[Event] = []
        self.evictions = 0

    @property
    def num_free(self) -> int:
        return sum(len(blocks) for blocks in self.free)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def match(self, tokens: list[int], salt: str, cap: int) -> list[int]:
        """The blocks of the longest cached prefix of at most `cap` tokens."""
        hits: list[int] = []
        while self.caching and (len(hits) + 1) * self.block_size <= cap:
            found = self.copies.get((salt, tuple(tokens[: (len(hits) + 1) * self.block_size])))
            if not found:
                break
            hits.append(found[0])
        return hits

    def admit(self, hits: list[int], tokens: int, keep_free: int) -> Held | None:
        """Hit blocks and new ones for `tokens` tokens; None when they do not fit, hits recent."""
        fresh = max(0, self.blocks_for(tokens) - len(hits))
        for b in hits:
            self._ref(b)
        held = Held(list(hits), len(hits))
        if fresh + keep_free > self.num_free:
            self.release(held)
            return None
        for b in hits:
            self._set_kind(b, PROVEN)
        held.blocks += [self._take() for _ in range(fresh)]
        return held

    def grow(self, held: Held, tokens: int) -> bool:
        need = self.blocks_for(tokens) - len(held.blocks)
        if need > self.num_free:
            return False
        held.blocks += [self._take() for _ in range(need)]
        return True

    def publish(self, held: Held, tokens: list[int], salt: str, known: int) -> list[int]:
        """Files the full blocks of the first `known` tokens; returns those that were filed."""
        filed: list[int] = []
        while self.caching and (held.published + 1) * self.block_size <= known:
            end = (held.published + 1) * self.block_size
            block = held.blocks[held.published]
            key = (salt, tuple(tokens[:end]))
            copies = self.copies.setdefault(key, [])
            if copies:
                copies.insert(1, block)
            else:
                copies.append(block)
                self.events.append(("stored", block, key[1][end - self.block_size :]))
            self.content[block] = key
            self._set_kind(block, PROBATIONARY)
            filed.append(block)
            held.published += 1
        return filed

    def unpublish(self, held: Held, first: int) -> None:
        while held.published > first:
            held.published -= 1
            self.forget(held.blocks[held.published])

    def forget(self, block: int) -> None:
        if block in self.content:
            self._remove(block)
            self._set_kind(block, UNHASHED)

    def release(self, held: Held) -> None:
        for b in reversed(held.blocks):
            self.refs[b] -= 1
            if self.refs[b] == 0:
                self.free[self.kind[b]].append(b)
        held.blocks = []

    def reset(self) -> bool:
        if self.num_free != self.num_blocks - 1:
            return False
        for block in sorted(self.content):
            del self.content[block]
            self._set_kind(block, UNHASHED)
        self.copies.clear()
        self.events.append(("cleared", 0, ()))
        return True

    def _take(self) -> int:
        unhashed, probationary, proven = self.free
        if unhashed:
            block = unhashed[0]
        elif not probationary or len(proven) > PROVEN_SHARE * (len(proven) + len(probationary)):
            block = proven[0]
        else:
            block = probationary[0]
        if block in self.content:
            self._remove(block)
            self.evictions += 1
        self._ref(block)
        self.kind[block] = UNHASHED
        return block

    def _remove(self, block: int) -> None:
        key = self.content.pop(block)
        self.copies[key].remove(block)
        if not self.copies[key]:
            del self.copies[key]
            self.events.append(("removed", block, ()))

    def _ref(self, block: int) -> None:
        if self.refs[block] == 0:
            self.free[self.kind[block]].remove(block)
        self.refs[block] += 1

    def _set_kind(self, block: int, kind: int) -> None:
        if self.kind[block] == kind:
            return
        if self.refs[block] == 0:
            self.free[self.kind[block]].remove(block)
            self.free[kind].append(block)
        self.kind[block] = kind
