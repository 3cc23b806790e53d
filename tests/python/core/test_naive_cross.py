"""Random operations on octavo.core with a cross group and on a naive model of it must show the same."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest
from core.naive_cross import CrossConfig, CrossEngine, Item
from core.naive_engine import NaiveStep
from core.test_naive_model import Twins, random_config

from octavo import core

GROUPS = ("block_size", "item_block_size", "encoder_len")


def random_cross_config(rng: random.Random) -> CrossConfig:
    plain = random_config(rng)
    item_block_size = rng.choice([1, 2, 4, 8])
    encoder_len = rng.randint(1, 20)
    least = -(-(plain.max_model_len - 1) // plain.block_size) - (-encoder_len // item_block_size) + 1
    options = {**vars(plain), "num_blocks": least + rng.randint(0, least), "sub_block_hits": False}
    budget = rng.choice([0, encoder_len, 2 * encoder_len])
    return CrossConfig(
        **options, item_block_size=item_block_size, encoder_len=encoder_len, encoder_budget=budget
    )


class CrossTwins(Twins):
    """Every request brings one of a few items; encodings, item blocks and columns are compared as well."""

    naive: CrossEngine
    config: CrossConfig  # type: ignore[assignment]

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.rng = random.Random(seed)
        self.config = config = random_cross_config(self.rng)
        self.naive = CrossEngine(config)
        options = {name: value for name, value in vars(config).items() if name not in GROUPS}
        groups = [
            core.CacheGroup("full", block_size=config.block_size),
            core.CacheGroup("cross", block_size=config.item_block_size, encoder_len=config.encoder_len),
        ]
        self.core = core.Engine(
            core.EngineConfig(
                **options, groups=groups, priority_aging_ms=0, hash_seed=seed + 1, enable_kv_events=True
            ),
            self.clock,
        )
        self.table = self.core.block_table()
        self.lag = config.max_steps_in_flight - 1

    def add(self) -> None:
        rng = self.rng
        length = rng.randint(1, self.config.max_model_len - 1)
        family = rng.randrange(2)
        prompt = [(family * 7 + i * (family + 1)) % 50 for i in range(length)]
        for i in range(rng.randint(0, length), length):
            prompt[i] = rng.randrange(50)
        content = rng.randrange(4)
        words = (content, 7, -content, 9)
        item = Item(words, 1 + content * 7 % self.config.encoder_len)
        params = core.SamplingParams()
        params.temperature = 0.0
        params.max_tokens = rng.randint(1, 20)
        eos = rng.choice([-1, 3])
        params.eos_token_ids = [] if eos < 0 else [eos]
        salt = rng.choice(["", "", "other"])
        wish, retention = self.wish(length)
        cross = core.EncoderItem(struct.pack("<4i", *words), 0, 0, item.embeddings, cross=True)
        id = self.core.add_request(np.array(prompt, np.int32), params, 0, salt, retention, [cross])
        root = f"{salt}, {item}"
        self.requests[id] = self.naive.add(id, prompt, params.max_tokens, eos, False, 0, root, wish)
        self.naive.items[id] = self.naive.cache.items[root] = item

    def compare_plan(self, plan: Any, step: NaiveStep) -> None:
        super().compare_plan(plan, step)
        assert all(entry == -1 for _, _, entry in plan.encoder_inputs)
        inputs = [(id, item, row) for (id, item, _), row in zip(plan.encoder_inputs, plan.encoder_rows)]
        assert inputs == self.naive.inputs
        columns, table = self.core.columns(plan.slot), self.core.block_table(1)
        for i, row in enumerate(step.rows):
            assert columns["cross_len"][i] == self.naive.items[row.request.id].embeddings
            blocks = self.naive.blocks[row.request.id]
            line = table[columns["row_slot"][i]].tolist()
            assert line == blocks + [0] * (len(line) - len(blocks))

    def compare(self) -> None:
        super().compare()
        stats = self.core.stats()
        assert stats["encoder_queries"] == self.naive.queries
        assert stats["encoder_hits"] == self.naive.item_hits


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_cross_items_equal_the_naive_model(first: int) -> None:
    preemptions = hits = queries = item_hits = 0
    for seed in range(first, first + 100):
        twins = CrossTwins(seed)
        try:
            twins.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {twins.config}: {error}") from error
        preemptions += twins.naive.preemptions
        hits += twins.naive.hits
        queries += twins.naive.queries
        item_hits += twins.naive.item_hits
    # A run that never reaches the hard parts proves nothing.
    assert preemptions > 50
    assert hits > 200
    assert item_hits > 200
    assert queries - item_hits > 200
