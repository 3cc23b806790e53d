"""Encoder-decoder requests over the naive model: what docs/contracts/encoder.md says of cross items, not how.

The engine has two groups with blocks of one size in bytes: tokens, and the item of each request.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.naive_cache import PROBATIONARY, Content, Filed, Held, Hit, NaiveCache, Wish
from core.naive_engine import NaiveConfig, NaiveEngine, NaiveRequest, NaiveStep


@dataclass(frozen=True)
class CrossConfig(NaiveConfig):
    item_block_size: int = 4  # embeddings
    encoder_len: int = 8
    encoder_budget: int = 0


@dataclass(frozen=True)
class Item:
    words: tuple[int, int, int, int]  # its hash
    embeddings: int


class CrossCache(NaiveCache):
    """Blocks of items beside those of tokens, in one pool."""

    def __init__(self, config: CrossConfig) -> None:
        super().__init__(config.num_blocks, config.block_size, config.enable_prefix_caching, False)
        self.item_block_size = config.item_block_size
        self.items: dict[str, Item] = {}  # by what stands before the prompts of their requests
        self.coming = 0  # blocks of an item that the admission under way takes besides

    def keys(self, root: str, item: Item) -> list[Content]:
        """What the blocks of an item hold, in order."""
        count = -(-item.embeddings // self.item_block_size)
        return [(f"item of {root}", (*item.words, item.embeddings, i)) for i in range(count)]

    def match_item(self, root: str, item: Item) -> list[int]:
        """All of its blocks, or none."""
        found = [self.copies.get(key, [0])[0] for key in self.keys(root, item)]
        return found if self.caching and all(found) else []

    def hold_item(self, found: list[int]) -> None:
        for block in found:
            self._ref(block)

    def release_item(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self._unref(block)

    def admit(self, hit: Hit, tokens: int, keep_free: int, wish: Wish) -> Held | None:
        return super().admit(hit, tokens, keep_free + self.coming, wish)

    def take_item(self, found: list[int], wish: Wish) -> list[int]:
        for block in found:
            self._prove(block, 0, wish)
        return found or [self._take() for _ in range(self.coming)]

    def publish_item(self, blocks: list[int], root: str, item: Item, wish: Wish) -> list[int]:
        if not self.caching:
            return []
        for i, (block, key) in enumerate(zip(blocks, self.keys(root, item))):
            copies = self.copies.setdefault(key, [])
            if copies:
                copies.insert(1, block)
                serial = self.filed[copies[0]].serial
            else:
                copies.append(block)
                serial, self.serial = self.serial, self.serial + 1
                self.events.append(("stored", block, key[1]))
            start = i * self.item_block_size
            self.filed[block] = Filed(key, start, serial, before=0, whole=True)
            self._set_kind(block, PROBATIONARY)
            self._retain(block, 0, wish)
        return blocks

    def forget_past(self, tokens: list[int], salt: str, first: int) -> None:
        super().forget_past(tokens, salt, first)
        if first > 0:
            return  # a sample has proven it
        for key in self.keys(salt, self.items[salt]):
            while self.copies.get(key):
                self.forget(self.copies[key][0])


class CrossEngine(NaiveEngine):
    """Every request brings an item; its salt is that of the item, too."""

    cache: CrossCache
    config: CrossConfig

    def __init__(self, config: CrossConfig) -> None:
        super().__init__(config)
        self.cache = CrossCache(config)
        self.items: dict[int, Item] = {}
        self.blocks: dict[int, list[int]] = {}  # of the items of those that run
        self.inputs: list[tuple[int, int, int]] = []  # of the step that was planned last
        self.encoder_budget = 0
        self.fresh: NaiveRequest | None = None  # whose item is to be filed
        self.queries = 0
        self.item_hits = 0

    def begin(self) -> NaiveStep | None:
        self.encoder_budget = self.config.encoder_budget or self.config.encoder_len
        self.inputs = []
        return super().begin()

    def _admit_with(self, r: NaiveRequest, hit: Hit) -> str:
        item = self.items[r.id]
        found = self.cache.match_item(r.salt, item)
        if not found and item.embeddings > self.encoder_budget:
            return "step is full"
        self.cache.coming = 0 if found else len(self.cache.keys(r.salt, item))
        self.cache.hold_item(found)
        self.fresh, self.found = r, found
        outcome = super()._admit_with(r, hit)
        self.fresh = None
        self.cache.coming = 0
        if outcome != "admitted":
            self.cache.release_item(found)
        if outcome == "does not fit":
            r.refused = (self.cache.num_free, self.reserved, self.steps)
        return outcome

    def _add_row(self, r: NaiveRequest, count: int) -> None:
        super()._add_row(r, count)
        if self.fresh is not r:
            return
        item = self.items[r.id]
        self.queries += 1
        self.blocks[r.id] = self.cache.take_item(self.found, r.wish)
        if self.found:
            self.item_hits += 1
            return
        self.encoder_budget -= item.embeddings
        self.inputs.append((r.id, 0, len(self.step.rows) - 1))
        self.step.filed += self.cache.publish_item(self.blocks[r.id], r.salt, item, r.wish)

    def _blocks_of(self, r: NaiveRequest) -> list[int]:
        return r.held.blocks + self.blocks[r.id]

    def _release(self, r: NaiveRequest) -> None:
        blocks = self.blocks.pop(r.id)
        super()._release(r)
        self.cache.release_item(blocks)
        self.cache.restart(Held(blocks), r.wish, self.now)
