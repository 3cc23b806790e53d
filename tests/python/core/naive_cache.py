"""Blocks, prefix cache and block tables as lists and dicts: what docs/contracts/kv.md says, not how."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.naive_timers import NaiveTimers

# Classes of free blocks, lowest first: of content that somebody spoke for, the priority itself.
UNHASHED, PROBATIONARY, PROVEN = -1.0, 34.5, 35.0
PROVEN_SHARE = 0.8
ROOT = 1  # what stands before a first block
SIBLINGS = 16  # how many a search for the start of a block looks at

Content = tuple[str, tuple[int, ...]]  # salt, and all tokens up to the end of the block
Event = tuple[str, int, tuple[int, ...]]  # kind, block, tokens of a stored block


@dataclass(frozen=True)
class Wish:
    """What a request asks to keep: priorities of a range of its prompt, and of what it generates."""

    prompt_len: int
    begin: int = 0
    end: int = 0
    priority: int = 35
    decode_priority: int = 35
    duration: int = 0  # microseconds after which the range's priority ends; 0: never
    decode_duration: int = 0

    @property
    def timed(self) -> bool:
        return self.duration > 0 or (self.decode_duration > 0 and self.decode_priority != 35)

    def lasts(self, position: int) -> int:
        return self.decode_duration if position >= self.prompt_len else self.duration

    def of(self, position: int) -> int | None:
        if position >= self.prompt_len:
            return self.decode_priority if self.decode_priority != 35 else None
        return self.priority if self.begin <= position < self.end else None


@dataclass
class Held:
    """What one running request holds."""

    blocks: list[int] = field(default_factory=list)
    published: int = 0


@dataclass(frozen=True)
class Filed:
    """What a cached block holds. Serials name contents for as long as they are cached."""

    key: Content
    start: int
    serial: int
    before: int
    whole: bool


@dataclass(frozen=True)
class Hit:
    blocks: list[int] = field(default_factory=list)
    source: int = 0  # a block that begins with the next `partial` tokens
    partial: int = 0


class NaiveCache:
    """One pool of blocks with its prefix cache."""

    def __init__(self, num_blocks: int, block_size: int, caching: bool, sub_block_hits: bool) -> None:
        self.block_size = block_size
        self.caching = caching
        self.sub_block_hits = sub_block_hits and caching
        self.num_blocks = num_blocks
        self.refs = [1] + [0] * (num_blocks - 1)
        self.kind = [UNHASHED] * num_blocks
        self.hit = [False] * num_blocks
        self.free: dict[float, list[int]] = {UNHASHED: list(range(1, num_blocks))}  # next victim first
        self.copies: dict[Content, list[int]] = {}  # of whole blocks; the one that a hit gives first
        self.filed: dict[int, Filed] = {}
        self.starts: list[int] = []  # blocks that a search for a start may find, the latest first
        self.open_copies: list[tuple[int, int]] = []  # source, target
        self.serial = ROOT + 1
        self.fence = 0
        self.events: list[Event] = []
        self.evictions = 0
        self.timers = NaiveTimers()

    @property
    def num_free(self) -> int:
        return sum(len(blocks) for blocks in self.free.values())

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    # Lookup.

    def match(self, tokens: list[int], salt: str, cap: int) -> Hit:
        """The longest cached prefix of at most `cap` tokens: whole blocks, then the start of another."""
        hits: list[int] = []
        while self.caching and (len(hits) + 1) * self.block_size <= cap:
            found = self.copies.get((salt, tuple(tokens[: (len(hits) + 1) * self.block_size])))
            if not found or self.filed[found[0]].before != self._serial_after(hits):
                break
            hits.append(found[0])
        start = len(hits) * self.block_size
        most = min(cap - start, self.block_size - 1)
        if not self.sub_block_hits or most <= 0:
            return Hit(hits)
        key = (salt, tuple(tokens[: start + most]))
        source, shared = self._find_start(key, start, self._serial_after(hits), self.fence)
        if shared >= max(1, self.block_size // 4) or (shared > 0 and shared == cap - start):
            return Hit(hits, source, shared)
        return Hit(hits)

    def _serial_after(self, blocks: list[int]) -> int | None:
        if not blocks:
            return ROOT
        filed = self.filed.get(blocks[-1])
        return filed.serial if filed and filed.whole else None

    def _find_start(self, key: Content, start: int, before: int | None, fence: int) -> tuple[int, int]:
        salt, tokens = key
        best, most, looked_at = 0, 0, 0
        for block in self.starts:
            filed = self.filed[block]
            other = filed.key[1]
            if (filed.key[0], other[: start + 1]) != (salt, tokens[: start + 1]) or filed.start != start:
                continue
            if filed.before != before:
                continue
            looked_at += 1
            if looked_at > SIBLINGS:
                break
            if filed.serial >= fence:
                continue
            shared = 0
            for left, right in zip(other[start:], tokens[start:]):
                if left != right:
                    break
                shared += 1
            if shared > most:
                best, most = block, shared
        return best, most

    # Taking and giving back.

    def admit(self, hit: Hit, tokens: int, keep_free: int, wish: Wish) -> Held | None:
        """Hit blocks and new ones for `tokens` tokens; None when they do not fit, hits recent."""
        fresh = max(0, self.blocks_for(tokens) - len(hit.blocks))
        for b in hit.blocks:
            self._ref(b)
        if hit.partial:
            self._ref(hit.source)
        held = Held(list(hit.blocks), len(hit.blocks))
        if fresh + keep_free > self.num_free:
            if hit.partial:
                self._unref(hit.source)
            self.release(held)
            return None
        for i, b in enumerate(hit.blocks):
            self._prove(b, i, wish)
        held.blocks += [self._take() for _ in range(fresh)]
        if hit.partial:
            target = held.blocks[len(hit.blocks)]
            self._ref(target)
            self._prove(hit.source, len(hit.blocks), wish)
            self.open_copies.append((hit.source, target))
        return held

    def end_copies(self, count: int) -> None:
        for source, target in self.open_copies[:count]:
            self._unref(target)
            self._unref(source)
        del self.open_copies[:count]

    def grow(self, held: Held, tokens: int) -> bool:
        need = self.blocks_for(tokens) - len(held.blocks)
        if need > self.num_free:
            return False
        held.blocks += [self._take() for _ in range(need)]
        return True

    def release(self, held: Held) -> None:
        for b in reversed(held.blocks):
            self._unref(b)
        held.blocks = []

    def restart(self, held: Held, wish: Wish, now: int) -> None:
        """Its request lets go of the blocks: what it asked to keep for a time is kept from now on."""
        for b in held.blocks if wish.timed else ():
            self.timers.restart(b, now)

    def expire(self, now: int) -> None:
        self.timers.expire(now, self._end_wish)

    def _end_wish(self, block: int) -> bool:
        if self.refs[block] == 0:
            self._set_kind(block, self._ordinary(block))
        return self.refs[block] == 0

    # Filing.

    def publish(self, held: Held, tokens: list[int], salt: str, known: int, wish: Wish) -> list[int]:
        """Files the full blocks of the first `known` tokens; returns those that were filed."""
        done: list[int] = []
        while self.caching and (held.published + 1) * self.block_size <= known:
            index = held.published
            end = (index + 1) * self.block_size
            before = self._serial_after(held.blocks[:index])
            if before is None:
                break
            block = held.blocks[index]
            key = (salt, tuple(tokens[:end]))
            while self.copies.get(key) and self.filed[self.copies[key][0]].before != before:
                self.forget(self.copies[key][0])
            copies = self.copies.setdefault(key, [])
            if copies:
                copies.insert(1, block)
                serial = self.filed[copies[0]].serial
            else:
                copies.append(block)
                serial, self.serial = self.serial, self.serial + 1
                if self.sub_block_hits:
                    self.starts.insert(0, block)
                self.events.append(("stored", block, key[1][end - self.block_size :]))
            self.filed[block] = Filed(key, end - self.block_size, serial, before, whole=True)
            self._set_kind(block, PROBATIONARY)
            self._retain(block, index, wish)
            done.append(block)
            held.published += 1
        return done

    def publish_tail(self, held: Held, tokens: list[int], salt: str, processed: int, wish: Wish) -> None:
        """Files all that a request leaves behind, a last block that is not full too."""
        if not self.sub_block_hits:
            return
        self.publish(held, tokens, salt, processed, wish)
        index, size = divmod(processed, self.block_size)
        if size == 0 or held.published != index:
            return
        before = self._serial_after(held.blocks[:index])
        block = held.blocks[index]
        if before is None or any(target == block for _, target in self.open_copies):
            return
        key, start = (salt, tuple(tokens[:processed])), index * self.block_size
        if self._find_start(key, start, before, self.serial)[1] == size:
            return
        self.filed[block] = Filed(key, start, self.serial, before, whole=False)
        self.serial += 1
        self.starts.insert(0, block)
        self._set_kind(block, PROBATIONARY)
        self._retain(block, index, wish)

    def forget_past(self, tokens: list[int], salt: str, first: int) -> None:
        """Takes the full blocks that reach past the `first` tokens out, every copy, the last block first."""
        ends = range(self.block_size, len(tokens) + 1, self.block_size)
        for end in reversed([end for end in ends if end > first]):
            key = (salt, tuple(tokens[:end]))
            while self.copies.get(key):
                self.forget(self.copies[key][0])
        if self.sub_block_hits and first == 0:  # what would be copied may be what was
            start = (salt, tuple(tokens[: self.block_size]))
            block, shared = self._find_start(start, 0, ROOT, self.serial)
            if shared:
                self.forget(block)

    def forget(self, block: int) -> None:
        if block in self.filed:
            self._remove(block)
            self._set_kind(block, UNHASHED)
            self.timers.cancel(block)

    def reset(self) -> bool:
        if self.num_free != self.num_blocks - 1:
            return False
        for block in sorted(self.filed):
            del self.filed[block]
            self._set_kind(block, UNHASHED)
            self.timers.cancel(block)
        self.copies.clear()
        self.starts.clear()
        self.events.append(("cleared", 0, ()))
        return True

    # One block.

    def _take(self) -> int:
        kinds = sorted(kind for kind, blocks in self.free.items() if blocks)
        kept = sum(len(self.free[kind]) for kind in kinds if kind > PROBATIONARY)
        if kinds[0] == PROBATIONARY and kept > PROVEN_SHARE * self.num_free:
            kinds.pop(0)
        block = self.free[kinds[0]][0]
        if block in self.filed:
            self._remove(block)
            self.timers.cancel(block)
            self.evictions += 1
        self._ref(block)
        self.kind[block] = UNHASHED
        self.hit[block] = False
        return block

    def _remove(self, block: int) -> None:
        filed = self.filed.pop(block)
        if block in self.starts:
            self.starts.remove(block)
        if not filed.whole:
            return
        self.copies[filed.key].remove(block)
        if not self.copies[filed.key]:
            del self.copies[filed.key]
            self.events.append(("removed", block, ()))

    def _ref(self, block: int) -> None:
        if self.refs[block] == 0:
            self.free[self.kind[block]].remove(block)
        self.refs[block] += 1

    def _unref(self, block: int) -> None:
        self.refs[block] -= 1
        if self.refs[block] == 0:
            self._give_back(block)

    def _give_back(self, block: int) -> None:
        line = self.free.setdefault(self.kind[block], [])
        line.insert(0 if self.kind[block] == UNHASHED else len(line), block)

    def _prove(self, block: int, index: int, wish: Wish) -> None:
        self.hit[block] = True
        if self.kind[block] == PROBATIONARY:
            self._set_kind(block, PROVEN)
        self._retain(block, index, wish)

    def _retain(self, block: int, index: int, wish: Wish) -> None:
        priority = wish.of(index * self.block_size)
        if priority is None:
            return
        self.timers.cancel(block)
        self._set_kind(block, self._ordinary(block) if priority == 35 else float(priority))
        lasts = wish.lasts(index * self.block_size)
        if priority != 35 and lasts > 0:
            self.timers.set(block, lasts)

    def _ordinary(self, block: int) -> float:
        return PROVEN if self.hit[block] else PROBATIONARY

    def _set_kind(self, block: int, kind: float) -> None:
        if kind == UNHASHED:
            self.hit[block] = False
        if self.kind[block] == kind:
            return
        if self.refs[block] > 0:
            self.kind[block] = kind
            return
        self.free[self.kind[block]].remove(block)
        self.kind[block] = kind
        self._give_back(block)
