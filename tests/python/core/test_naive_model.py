"""Random operations on octavo.core and on a naive model of it must show the same everywhere."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from core.naive_cache import Wish
from core.naive_engine import NaiveConfig, NaiveEngine, NaiveRequest, NaiveStep

from octavo import core

OPERATIONS = 120


def random_config(rng: random.Random) -> NaiveConfig:
    block_size = rng.choice([1, 2, 4, 8])
    max_model_len = rng.randint(12, 48)
    least = -(-(max_model_len - 1) // block_size) + 1
    return NaiveConfig(
        num_blocks=least + rng.randint(0, 2 * least),
        block_size=block_size,
        max_model_len=max_model_len,
        max_num_seqs=rng.randint(1, 8),
        max_num_batched_tokens=rng.randint(1, 40),
        enable_prefix_caching=rng.random() < 0.85,
        long_prefill_token_threshold=rng.choice([0, 0, 3]),
        policy=rng.choice(["fcfs", "priority"]),
        victim=rng.choice(["cost", "last"]),
        watermark=rng.choice([0.0, 0.0, 0.2]),
        full_prompt_gate=rng.random() < 0.5,
        max_overtakes=rng.randint(0, 4),
        max_steps_in_flight=rng.randint(1, 3),
        max_draft_tokens=rng.choice([0, 1, 4]),
        sub_block_hits=rng.random() < 0.6,
    )


class Twins:
    """The core and the naive engine, driven alike and compared after every operation."""

    most_tokens = 20
    weights = (30, 100, 60, 40, 6, 1, 2)

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.config = self.draw_config()
        self.naive = NaiveEngine(self.config)
        self.clock = core.ManualClock()
        self.core = core.Engine(
            core.EngineConfig(
                **vars(self.config), priority_aging_ms=0, hash_seed=seed + 1, enable_kv_events=True
            ),
            self.clock,
        )
        self.table = self.core.block_table()
        self.requests: dict[int, NaiveRequest] = {}
        self.open: list[tuple[Any, NaiveStep]] = []
        self.copies = self.sharing = self.ordered = self.beside = self.small = 0
        self.lag = self.config.max_steps_in_flight - 1

    def draw_config(self) -> NaiveConfig:
        return random_config(self.rng)

    def draw_prompt(self) -> list[int]:
        rng = self.rng
        length = rng.randint(1, self.config.max_model_len - 1)
        family = rng.randrange(3)
        prompt = [(family * 7 + i * (family + 1)) % 50 for i in range(length)]
        for i in range(rng.randint(0, length), length):
            prompt[i] = rng.randrange(50)
        return prompt

    def add(self) -> None:
        rng, prompt = self.rng, self.draw_prompt()
        length = len(prompt)
        params = core.SamplingParams()
        params.temperature = 0.0
        params.max_tokens = rng.randint(1, self.most_tokens)
        eos = rng.choice([-1, 3])
        params.eos_token_ids = [] if eos < 0 else [eos]
        history = rng.random() < 0.2
        params.presence_penalty = 0.5 if history else 0.0
        priority = rng.randint(-1, 1)
        salt = rng.choice(["", "", "other"])
        wish, retention = self.wish(length)
        id = self.core.add_request(np.array(prompt, np.int32), params, priority, salt, retention)
        self.requests[id] = self.naive.add(id, prompt, params.max_tokens, eos, history, priority, salt, wish)

    def wish(self, length: int) -> tuple[Wish, core.Retention | None]:
        """What one request in three asks to keep."""
        rng = self.rng
        if rng.random() < 0.7:
            return Wish(length), None
        begin = rng.randrange(length)
        end, priority = rng.randint(begin + 1, length), rng.choice([0, 20, 35, 50, 100])
        decode = rng.choice([10, 35, 60])
        lasts, decode_lasts = (rng.choice([0, 0, 1, 7, 90, 1500, 20_000]) for _ in range(2))
        retention = core.Retention(
            [(begin, end, priority, lasts)], decode_priority=decode, decode_duration_ms=decode_lasts
        )
        wish = Wish(length, begin, end, priority, decode, 1000 * lasts, 1000 * decode_lasts)
        return wish, retention

    def wait(self) -> None:
        """Time passes: mostly less than what is kept for a time lasts, now and then more than all of it."""
        passed = self.rng.choice([0, 300, 900, 5_000, 5_000, 40_000, 600_000, 30_000_000])
        self.naive.now += passed
        self.clock.now_us = self.naive.now

    def begin(self) -> bool:
        plan, step = self.core.begin_step(), self.naive.begin()
        assert (plan is None) == (step is None)
        if plan is None or step is None:
            return False
        self.compare_plan(plan, step)
        self.open.append((plan, step))
        return True

    def compare_plan(self, plan: Any, step: NaiveStep) -> None:
        columns = self.core.columns(plan.slot)
        starts = columns["query_start"][: plan.num_rows + 1]
        assert plan.num_rows == len(step.rows)
        assert plan.num_samples == sum(row.samples for row in step.rows)
        assert plan.num_tokens == sum(row.count for row in step.rows)
        assert plan.num_shared_tokens == self.naive.shared_tokens
        assert plan.shares == step.shares
        self.sharing += plan.num_shared_tokens > 0
        orders = [row.request.order for row in step.rows[: plan.num_rows - plan.num_admitted]]
        moved = plan.shares and orders != sorted(orders)
        self.ordered += moved
        self.beside += moved and (plan.num_tokens > plan.num_rows or plan.num_admitted > 0)
        self.small += plan.num_shared_tokens > 0 and not plan.shares
        names = ("copy_source", "copy_target", "copy_tokens")
        assert list(zip(*(columns[name][: plan.num_copies].tolist() for name in names))) == step.copies
        self.copies += plan.num_copies
        sampled = columns["sample_row"][: plan.num_samples].tolist()
        for i, row in enumerate(step.rows):
            tokens = slice(starts[i], starts[i + 1])
            assert columns["request"][i] == row.request.id
            assert columns["token_id"][tokens].tolist() == row.token_ids
            assert columns["position"][tokens].tolist() == list(range(row.first, row.first + row.count))
            assert columns["seq_len"][i] == row.first + row.count
            assert sampled.count(i) == row.samples
            blocks = self.table[columns["row_slot"][i]].tolist()
            assert blocks == row.blocks + [0] * (len(blocks) - len(row.blocks))

    def finish(self) -> None:
        plan, step = self.open.pop(0)
        rng = self.rng
        tokens: list[int] = []
        for row in step.rows:
            # What the model says is what was guessed, more often than not.
            said = [rng.choice([draft, draft, rng.randrange(12)]) for draft in row.drafts]
            tokens += [*said, rng.randrange(12)][: row.samples]
        tokens = [-1 if rng.random() < 0.02 else token for token in tokens]
        assert len(tokens) == plan.num_samples
        self.compare_outputs(
            self.core.finish_step(plan.step_id, np.array(tokens, np.int32)), self.naive.finish(tokens)
        )

    def guess(self) -> None:
        """Drafts for one request, whatever it is doing; few token ids, so that some are right."""
        if not self.requests or self.config.max_draft_tokens == 0:
            return
        live = [r for r in self.requests.values() if r.state == "running"] or list(self.requests.values())
        request = self.rng.choice(live if self.rng.random() < 0.9 else list(self.requests.values()))
        drafts = [self.rng.randrange(12) for _ in range(self.rng.randint(0, self.config.max_draft_tokens))]
        try:
            self.core.set_drafts(request.id, np.array(drafts, np.int32))
            accepted = True
        except (KeyError, RuntimeError):
            accepted = False
        known = request.state != "over"
        assert accepted == (known and self.naive.set_drafts(request, drafts))

    def fail(self) -> None:
        outputs = self.core.fail_step(self.open[0][0].step_id)
        self.open.clear()
        self.compare_outputs(outputs, self.naive.fail())

    def compare_outputs(self, outputs: Any, expected: list[tuple[int, int, str, int]]) -> None:
        got = [
            (int(o["request"]), int(o["token"]), core.FINISH_REASONS[o["finish"]], int(o["cached_tokens"]))
            for o in outputs
        ]
        assert got == expected

    def end_one(self) -> None:
        live = [r for r in self.requests.values() if r.state != "over"]
        if live:
            r = self.rng.choice(live)
            (self.core.abort if self.rng.random() < 0.5 else self.core.stop)(r.id)
            self.naive.end(r)

    def reset(self) -> None:
        assert self.core.reset_prefix_cache() == self.naive.cache.reset()

    def compare(self) -> None:
        self.core.check_invariants()
        stats, naive = self.core.stats(), self.naive
        assert stats["running"] == self.core.num_running == len(naive.running)
        assert stats["waiting"] == self.core.num_waiting == len(naive.waiting)
        assert stats["free_blocks"] == naive.cache.num_free
        assert stats["cached_blocks"] == len(naive.cache.filed)
        assert stats["preemptions"] == naive.preemptions
        assert stats["evictions"] == naive.cache.evictions
        assert stats["prefix_hits"] == naive.hits
        assert stats["accepted_tokens"] == naive.accepted
        events = [(e["kind"], e["block"], tuple(e["token_ids"])) for e in self.core.take_events()]
        events = [e if e[0] == "stored" else (e[0], e[1], ()) for e in events]
        assert events == naive.cache.events
        naive.cache.events.clear()

    def operations(self) -> Iterator[str]:
        names = ["add", "turn", "guess", "wait", "end_one", "fail", "reset"]
        yield from self.rng.choices(names, self.weights, k=OPERATIONS)
        while self.core.has_unfinished() or self.open:
            yield self.rng.choice(["turn", "guess"])

    def run(self) -> None:
        for name in self.operations():
            if name == "turn":
                planned = self.begin()
                while len(self.open) > (self.lag if planned else 0):
                    self.finish()
            elif name != "fail" or self.open:
                getattr(self, name)()
            self.compare()
        assert self.core.stats()["free_blocks"] == self.config.num_blocks - 1


@pytest.mark.parametrize("first", range(0, 250, 50))
def test_core_equals_the_naive_model(first: int) -> None:
    preemptions = hits = accepted = copies = ended = put_off = 0
    for seed in range(first, first + 50):
        twins = Twins(seed)
        try:
            twins.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {twins.config}: {error}") from error
        preemptions += twins.naive.preemptions
        hits += twins.naive.hits
        copies += twins.copies
        accepted += twins.naive.accepted
        ended += twins.naive.cache.timers.ended
        put_off += twins.naive.cache.timers.put_off
    # A run that never reaches the hard parts proves nothing.
    assert preemptions > 50
    assert hits > 500
    assert copies > 50
    assert accepted > 50
    assert ended > 50
    assert put_off > 5


class LongTwins(Twins):
    """Crowds of requests with long prefixes in common, over a pool that few of them fit."""

    most_tokens = 60
    weights = (100, 100, 20, 10, 6, 1, 2)

    def draw_config(self) -> NaiveConfig:
        rng = self.rng
        block_size = rng.choice([4, 8, 16, 128])
        max_model_len = rng.randint(300, 500)
        least = -(-(max_model_len - 1) // block_size) + 1
        return dataclasses.replace(
            random_config(rng),
            num_blocks=2 * least + rng.randint(0, 2 * least),
            block_size=block_size,
            max_model_len=max_model_len,
            max_num_seqs=rng.randint(6, 16),
            max_num_batched_tokens=rng.randint(100, 1500),
            enable_prefix_caching=rng.random() < 0.95,
            long_prefill_token_threshold=rng.choice([0, 0, 100]),
        )

    def draw_prompt(self) -> list[int]:
        rng, family = self.rng, self.rng.choice([0, 0, 1])
        length = rng.randint(250, self.config.max_model_len - 1)
        prompt = [(family * 7 + i * (family + 1)) % 50 for i in range(length)]
        for i in range(rng.choice([length, rng.randint(200, length)]), length):
            prompt[i] = rng.randrange(50)
        return prompt


class CrowdedTwins(LongTwins):
    """More requests at once, of two prompts one of which goes on in two ways, and of their own."""

    most_tokens = 60

    def draw_config(self) -> NaiveConfig:
        config = super().draw_config()
        return dataclasses.replace(
            config,
            num_blocks=self.rng.choice([1, 1, 2, 4]) * config.num_blocks,
            max_num_seqs=self.rng.randint(14, 30),
            max_num_batched_tokens=self.rng.randint(300, 3000),
            sharing_min_tokens=self.rng.choice([0, 1, 1, 1, 3000]),
            sharing_min_rows=self.rng.choice([1, 1, 8]),
        )

    def draw_prompt(self) -> list[int]:
        rng, kind = self.rng, self.rng.choice([0, 0, 1, 1, 2, 2, 3])
        if kind == 3:
            return super().draw_prompt()
        prompt = [(kind // 2 * 7 + i * 3) % 50 for i in range(260)]
        prompt += [(kind * 11 + i) % 50 for i in range(self.config.max_model_len - 260 - rng.randint(8, 30))]
        return [*prompt, rng.randrange(50)]


@pytest.mark.parametrize("first", [0, 20])
def test_core_shares_what_the_naive_model_shares(first: int) -> None:
    """Through hits, preemption, aborts, failed rows and steps, and resets of the cache."""
    preemptions = sharing = steps = 0
    for seed in range(first, first + 20):
        twins = LongTwins(seed)
        try:
            twins.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {twins.config}: {error}") from error
        preemptions += twins.naive.preemptions
        sharing += twins.sharing
        steps += twins.naive.steps
    assert preemptions > 50
    assert 100 < sharing < steps - 100


def test_core_orders_rows_as_the_naive_model_does() -> None:
    preemptions = ordered = beside = small = 0
    for seed in range(30):
        twins = CrowdedTwins(seed)
        try:
            twins.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {twins.config}: {error}") from error
        preemptions += twins.naive.preemptions
        ordered += twins.ordered
        beside += twins.beside
        small += twins.small
    assert preemptions > 20
    assert ordered > 100
    assert beside > 50  # behind them are prompts
    assert small > 100
