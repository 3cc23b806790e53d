"""The scheduler as docs/contracts/step.md tells it, in plain Python and without regard for speed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from core.naive_cache import Held, Hit, NaiveCache, Wish

VICTIM_WINDOW = 32
LEAST_SHARING = 4  # requests that hit a block before it counts as shared
LEAST_SHARED = 256  # tokens of a prefix that counts


@dataclass(frozen=True)
class NaiveConfig:
    num_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    vocab_size: int = 50
    enable_prefix_caching: bool = True
    long_prefill_token_threshold: int = 0
    policy: str = "fcfs"
    victim: str = "cost"
    watermark: float = 0.0
    full_prompt_gate: bool = True
    max_overtakes: int = 8
    sub_block_hits: bool = False
    max_steps_in_flight: int = 2
    max_draft_tokens: int = 0
    sharing_min_tokens: int = 0
    sharing_min_rows: int = 1


@dataclass
class NaiveRequest:
    id: int
    prompt_len: int
    tokens: list[int]
    salt: str
    stop_len: int
    eos: int
    history: bool  # needs its own tokens before it goes on
    order: tuple[int, int]
    wish: Wish
    placeholders: int = 0
    computed: int = 0
    in_flight: int = 0
    epoch: int = 0
    admitted: int = 0  # tokens known when it was last admitted
    overtaken: int = 0
    refused: tuple[int, int, int] | None = None  # room, promises and step when it last did not fit
    cached: int = -1
    hit: list[int] = field(default_factory=list)  # blocks that it hit when it was last admitted
    state: str = "waiting"
    drafts: list[int] = field(default_factory=list)
    drafting: bool = False  # its row in an open step carries the drafts
    held: Held = field(default_factory=Held)


@dataclass
class Row:
    request: NaiveRequest
    first: int
    count: int
    sampled: bool
    epoch: int
    blocks: list[int]
    token_ids: list[int]
    drafts: list[int] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return len(self.drafts) + 1 if self.sampled else 0


@dataclass
class NaiveStep:
    rows: list[Row] = field(default_factory=list)
    filed: list[int] = field(default_factory=list)
    copies: list[tuple[int, int, int]] = field(default_factory=list)  # source, target, tokens
    shares: bool = False


Output = tuple[int, int, str, int]  # request, token, finish reason, cached tokens


class NaiveEngine:
    def __init__(self, config: NaiveConfig) -> None:
        self.config = config
        self.cache = NaiveCache(
            config.num_blocks, config.block_size, config.enable_prefix_caching, config.sub_block_hits
        )
        self.waiting: list[NaiveRequest] = []
        self.steps = 0
        self.running: list[NaiveRequest] = []
        self.open: list[NaiveStep] = []
        self.quarantine: list[int] = []  # for each slot that is not free yet: open steps to wait for
        self.arrivals = 0
        self.preemptions = 0
        self.hits = 0
        self.accepted = 0
        self.now = 0  # microseconds
        self.timed = False  # somebody asked for retention that ends

    def add(
        self,
        id: int,
        prompt: list[int],
        max_tokens: int,
        eos: int,
        history: bool,
        priority: int,
        salt: str,
        wish: Wish,
    ) -> NaiveRequest:
        stop_len = min(len(prompt) + max_tokens, self.config.max_model_len)
        major = priority if self.config.policy == "priority" else 0
        order = (major, self.arrivals)
        self.arrivals += 1
        self.timed = self.timed or wish.timed
        request = NaiveRequest(id, len(prompt), list(prompt), salt, stop_len, eos, history, order, wish)
        self.waiting.append(request)
        return request

    def set_drafts(self, r: NaiveRequest, drafts: list[int]) -> bool:
        if r.drafting:
            return False
        r.drafts = drafts[: r.stop_len - len(r.tokens) - 1] if r.state == "running" else []
        return True

    # Planning.

    def begin(self) -> NaiveStep | None:
        if len(self.open) == self.config.max_steps_in_flight:
            return None
        self.step = NaiveStep()
        self.cache.fence = self.cache.serial
        if self.timed:
            self.cache.expire(self.now)
        self.budget = self.config.max_num_batched_tokens
        self.reserved = 0
        self.many = len(self.running) + len(self.waiting) > 1
        self.preempted = self.retried = False
        self.promised = -1
        self.admitted = 0
        self._plan_running()
        if not self.preempted:
            self._admit_waiting()
        if not self.step.rows:
            return None
        decoding = self._count_decoding()
        enough = 0 < self.config.sharing_min_tokens <= self.shared_tokens
        self.step.shares = enough and decoding >= self.config.sharing_min_rows
        if self.step.shares:
            self.step.rows = self._in_order(self.step.rows[:decoding]) + self.step.rows[decoding:]
        self.open.append(self.step)
        self.steps += 1
        return self.step

    def _plan_running(self) -> None:
        planned: list[NaiveRequest] = []
        index = 0
        while index < len(self.running):
            r = self.running[index]
            if r.drafts and self._plan_drafts(r, index, planned):
                index += 1
                continue
            count = self._count(r)
            if count > 0 and self._make_room(r, index, r.computed + count):
                self._add_row(r, count)
                planned.append(r)
            if r.state == "running" and r.computed < len(r.tokens):
                need = self.cache.blocks_for(len(r.tokens)) - len(r.held.blocks)
                self.reserved += max(0, need)
            index += 1
        for r in planned:
            self._publish(r)

    def _plan_drafts(self, r: NaiveRequest, index: int, planned: list[NaiveRequest]) -> bool:
        if r.placeholders > 0:
            return True
        after = len(self.running) - index - 1
        decodes = r.computed == len(r.tokens) - 1 and r.computed >= r.prompt_len
        count = min(len(r.drafts), self.budget - 1 - after) if decodes else 0
        if count > 0 and self.promised < 0:
            prompts = [q for q in self.running if q.computed < len(q.tokens) - 1]
            needs = [self.cache.blocks_for(len(q.tokens)) - len(q.held.blocks) for q in prompts]
            self.promised = len(self.running) + sum(max(0, need) for need in needs)
        spare = max(0, self.cache.num_free - self.promised)
        size = self.cache.block_size
        room = (len(r.held.blocks) + spare) * size - len(r.tokens)
        count = min(count, room)
        if count <= 0:
            r.drafts = []
            return False
        r.drafts = r.drafts[:count]
        assert self.cache.grow(r.held, r.computed + 1 + count)
        ids = [r.tokens[-1], *r.drafts]
        blocks = list(r.held.blocks)
        self.step.rows.append(Row(r, r.computed, 1 + count, True, r.epoch, blocks, ids, r.drafts))
        r.drafting = True
        r.placeholders = 1 + count
        r.computed += 1 + count
        r.in_flight += 1 + count
        self.budget -= 1 + count
        planned.append(r)
        return True

    def _count(self, r: NaiveRequest) -> int:
        wanted = len(r.tokens) + r.placeholders - r.computed
        if r.placeholders > 0 and (len(r.tokens) + r.placeholders >= r.stop_len or r.history):
            return 0
        return self._cut(wanted)

    def _cut(self, wanted: int) -> int:
        count = min(wanted, self.budget)
        if self.many and self.config.long_prefill_token_threshold > 0:
            count = min(count, self.config.long_prefill_token_threshold)
        return max(0, count)

    def _make_room(self, r: NaiveRequest, index: int, tokens: int) -> bool:
        while not self.cache.grow(r.held, tokens):
            victim = self._victim(index)
            if victim is None:
                if index > 0:
                    self._preempt(index)
                return False
            self._preempt(victim)
        return True

    def _victim(self, index: int) -> int | None:
        later = range(index + 1, len(self.running))
        if not later:
            return None
        if self.config.victim == "cost":
            best: tuple[float, int] | None = None
            for i in list(reversed(later))[:VICTIM_WINDOW]:
                held = self.running[i].held
                lost = max(0, self.running[i].computed - held.published * self.config.block_size)
                freed = sum(self.cache.refs[b] == 1 for b in self._blocks_of(self.running[i]))
                if freed and (best is None or lost / freed < best[0]):
                    best = (lost / freed, i)
            if best:
                return best[1]
        return later[-1]

    def _blocks_of(self, r: NaiveRequest) -> list[int]:
        return r.held.blocks

    def _preempt(self, index: int) -> None:
        r = self.running.pop(index)
        self._publish_tail(r)
        self._release(r)
        r.computed = r.placeholders = 0
        r.epoch += 1
        r.drafts = r.drafts if r.drafting else []
        r.state = "waiting"
        self.waiting.append(r)
        self.preemptions += 1
        self.preempted = True

    def _publish_tail(self, r: NaiveRequest) -> None:
        if len(r.tokens) <= r.admitted:
            return  # no sample has proven it
        processed = min(r.computed - r.in_flight, len(r.tokens))
        self.cache.publish_tail(r.held, r.tokens, r.salt, processed, r.wish)

    def _release(self, r: NaiveRequest) -> None:
        self.cache.restart(r.held, r.wish, self.now)
        self.cache.release(r.held)
        r.held = Held()
        if self.open:
            self.quarantine.append(len(self.open))

    def _add_row(self, r: NaiveRequest, count: int) -> None:
        sampled = r.computed + count == len(r.tokens) + r.placeholders
        ids = r.tokens[r.computed : r.computed + count]
        ids += [-1] * (count - len(ids))
        row = Row(r, r.computed, count, sampled, r.epoch, list(r.held.blocks), ids)
        self.step.rows.append(row)
        r.placeholders += sampled
        r.computed += count
        r.in_flight += count
        self.budget -= count

    def _publish(self, r: NaiveRequest) -> None:
        known = min(r.computed, len(r.tokens))
        self.step.filed += self.cache.publish(r.held, r.tokens, r.salt, known, r.wish)

    def _admit_waiting(self) -> None:
        head: NaiveRequest | None = None
        passed = 0
        for r in sorted(self.waiting, key=lambda w: w.order):
            free_slots = self.config.max_num_seqs - len(self.running) - len(self.quarantine)
            if self.budget == 0 or free_slots == 0:
                break
            outcome = self._admit(r)
            if outcome == "admitted":
                if head:
                    head.overtaken += 1
                    if head.overtaken >= self.config.max_overtakes:
                        break
                continue
            passed += 1
            if passed == 64 or outcome == "step is full":
                break
            if outcome == "does not fit" and head is None:
                head = r
            if head and head.overtaken >= self.config.max_overtakes:
                break

    def _admit(self, r: NaiveRequest) -> str:
        if r.in_flight > 0:
            return "not now"
        if self._still_does_not_fit(r):
            return "does not fit"
        hit = self.cache.match(r.tokens, r.salt, len(r.tokens) - 1)
        outcome = self._admit_with(r, hit)
        if outcome == "does not fit" and hit.partial:
            outcome = self._admit_with(r, Hit(hit.blocks))
        return outcome

    def _still_does_not_fit(self, r: NaiveRequest) -> bool:
        if not self.config.full_prompt_gate or not self.running or r.refused is None:
            return False
        room, promised, step = r.refused
        if self.cache.num_free > room or self.reserved < promised:
            return False
        if self.steps - step >= 64 and not self.retried:
            self.retried = True
            return False
        return True

    def _admit_with(self, r: NaiveRequest, hit: Hit) -> str:
        whole = len(hit.blocks) * self.config.block_size
        start = whole + hit.partial
        count = self._cut(len(r.tokens) - start)
        now = self.cache.blocks_for(start + count)
        gate = self.cache.blocks_for(len(r.tokens)) if self.config.full_prompt_gate else now
        keep = self.reserved + gate - now
        if self.running:
            keep += int(self.config.watermark * self.config.num_blocks)
        held = self.cache.admit(hit, start + count, keep, r.wish)
        if held is None:
            r.refused = (self.cache.num_free, self.reserved, self.steps)
            return "does not fit"
        r.refused = None
        if hit.partial:
            self.step.copies.append((hit.source, held.blocks[len(hit.blocks)], hit.partial))
        r.held, r.hit, r.computed, r.state = held, list(hit.blocks), start, "running"
        r.admitted = len(r.tokens)
        if r.cached < 0:
            r.cached = min(start, r.prompt_len)
        self.hits += start
        self.admitted += 1
        self.waiting.remove(r)
        self.running.append(r)
        self.running.sort(key=lambda other: other.order)
        self._add_row(r, count)
        self._publish(r)
        self.reserved += max(0, self.cache.blocks_for(len(r.tokens)) - len(r.held.blocks))
        return "admitted"

    @property
    def shared_tokens(self) -> int:
        """Tokens that running requests hit in blocks that several of them hit, for each that did."""
        size, least = self.config.block_size, -(-LEAST_SHARED // self.config.block_size)
        requests = Counter(block for r in self.running for block in r.hit)
        total = 0
        for r in self.running:
            for end, block in enumerate(r.hit, 1):
                if end >= least and requests[block] >= LEAST_SHARING:
                    total += end * size if end == least else size
        return total

    def _count_decoding(self) -> int:
        """How many rows stand before the first that does more than decode, or was just admitted."""
        rows = self.step.rows[: len(self.step.rows) - self.admitted]
        return next((i for i, row in enumerate(rows) if row.count > 1 or not row.sampled), len(rows))

    def _in_order(self, rows: list[Row]) -> list[Row]:
        """The rows, next to those they share a prefix with."""
        least = -(-LEAST_SHARED // self.config.block_size)
        requests = Counter(block for r in self.running for block in r.hit[least - 1 :])

        def shared(blocks: list[int]) -> int:
            return blocks[0] if blocks and requests[blocks[0]] >= LEAST_SHARING else 0

        firsts = [shared(row.blocks[least - 1 : least]) for row in rows]
        lasts = [shared(row.request.hit[least - 1 :][-1:]) for row in rows]
        parts = [last or first for first, last in zip(firsts, lasts)]

        def place(i: int) -> tuple[bool, int, int, int]:
            begins = parts.index(parts[i])  # the row that says where the part stands
            first, depth = firsts[begins], len(rows[begins].request.hit) if lasts[begins] else least
            return first == 0, firsts.index(first), -depth, begins

        order = sorted(range(len(rows)), key=place)
        moves = count_pieces([parts[i] for i in order]) < count_pieces(parts)
        return [rows[i] for i in order] if moves else rows

    # Finishing.

    def finish(self, tokens: list[int]) -> list[Output]:
        """One token for each sample, -1 for a failed one."""
        step = self.open[0]
        outputs: list[Output] = []
        left = list(tokens)
        for row in step.rows:
            r = row.request
            mine, left = left[: row.samples], left[row.samples :]
            r.in_flight -= row.count
            if r.state == "over" or not row.sampled:
                continue
            outputs += self._finish_row(row, mine)
        self._close_step()
        return outputs

    def _finish_row(self, row: Row, tokens: list[int]) -> list[Output]:
        r, stale = row.request, row.epoch != row.request.epoch
        if not stale:
            r.placeholders -= row.samples
            r.computed -= len(row.drafts)
        if row.drafts:
            r.drafts, r.drafting = [], False
        outputs: list[Output] = []
        for i, token in enumerate(tokens):
            if not 0 <= token < self.config.vocab_size:
                proven = not stale and row.first >= r.admitted
                self.cache.forget_past(r.tokens, r.salt, row.first if proven else 0)
                outputs.append((r.id, -1, "error", r.cached))
                self.end(r, failed=True)
                return outputs
            r.tokens.append(token)
            r.drafts = r.drafts[1:] if r.drafts[:1] == [token] else []
            reason = "stop" if token == r.eos else "length" if len(r.tokens) >= r.stop_len else "none"
            outputs.append((r.id, token, reason, r.cached))
            right = i < len(row.drafts) and row.drafts[i] == token
            self.accepted += right
            if not right or reason != "none":
                break
            r.computed += not stale
        if row.drafts and not stale:  # its step has run, so no step takes this back
            self.cache.publish(r.held, r.tokens, r.salt, min(r.computed, len(r.tokens)), r.wish)
        if reason != "none":
            self.end(r)
        return outputs

    def fail(self) -> list[Output]:
        outputs: list[Output] = []
        while self.open:
            step = self.open[0]
            for block in step.filed:
                self.cache.forget(block)
            for row in step.rows:
                row.request.in_flight -= row.count
                if row.request.state != "over":
                    outputs.append((row.request.id, -1, "error", row.request.cached))
                    self.end(row.request, failed=True)
            self._close_step()
        return outputs

    def end(self, r: NaiveRequest, *, failed: bool = False) -> None:
        if r.state == "running":
            self.running.remove(r)
            if not failed:  # what a failed row left behind is not to be trusted
                self._publish_tail(r)
            self._release(r)
        else:
            self.waiting.remove(r)
        r.state = "over"

    def _close_step(self) -> None:
        self.cache.end_copies(len(self.open.pop(0).copies))
        self.quarantine = [n - 1 for n in self.quarantine if n > 1]


def count_pieces(parts: list[int]) -> int:
    return sum(a != b for a, b in pairwise(parts))
