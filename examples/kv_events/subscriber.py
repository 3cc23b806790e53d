"""Follows an engine's KV events, rebuilds what its prefix cache holds, and routes prompts by it.

    pip install 'octavo[events]'
    python examples/kv_events/subscriber.py            # an engine in this process, checked after each batch
    python examples/kv_events/subscriber.py --connect tcp://localhost:5557 --replay tcp://localhost:5558

The second form follows any engine that publishes in vLLM's format.
"""

from __future__ import annotations

import argparse
import random

from octavo.kv_events.subscriber import CacheIndex, Subscriber


def cached_tokens(index: CacheIndex, token_ids: list[int], salt: str | None = None) -> int:
    """How many leading tokens of a prompt the engine would find in its cache: what a router wants to know.

    A block is what its tokens, its extra keys and the block before it say: another salt hits nothing.
    """
    held = index.groups.get(0, {})
    blocks = {(block.parent, block.token_ids, block.extra_keys): name for name, block in held.items()}
    sizes = {len(tokens) for _, tokens, _ in blocks}
    if len(sizes) != 1:
        return 0
    size, parent, found = sizes.pop(), None, 0
    keys = (salt,) if salt else None
    while (name := blocks.get((parent, tuple(token_ids[found : found + size]), keys))) is not None:
        parent, found, keys = name, found + size, None
    return found


def follow(endpoint: str, replay: str | None) -> None:
    """Prints what changes, for ever."""
    subscriber = Subscriber(endpoint, replay)
    subscriber.catch_up()
    while True:
        if subscriber.poll(1.0):
            held = {group: len(blocks) for group, blocks in subscriber.index.groups.items()}
            exact = "exact" if subscriber.index.exact else "not exact: batches were missed"
            print(f"batch {subscriber.next_sequence - 1}: blocks by group {held} ({exact})")


def demonstrate() -> None:
    """Runs the model `tiny` and checks the subscriber against the engine."""
    from octavo import LLM, SamplingParams

    settings = {
        "enable_kv_cache_events": True,
        "endpoint": "inproc://events",
        "replay_endpoint": "inproc://replay",
    }
    llm = LLM("tiny", kv_events_config=settings, num_gpu_blocks_override=40, max_model_len=256)
    subscriber = Subscriber(settings["endpoint"], settings["replay_endpoint"])
    core, rng = llm.llm_engine.core, random.Random(0)
    prompts = [[rng.randrange(300) for _ in range(rng.randint(20, 120))] for _ in range(8)]
    for turn in range(20):
        chosen, salt = rng.sample(prompts, 3), rng.choice(["one tenant", "another"])
        promised = [cached_tokens(subscriber.index, prompt, salt) for prompt in chosen]
        outputs = llm.generate(
            [{"prompt_token_ids": prompt, "cache_salt": salt} for prompt in chosen],
            SamplingParams(max_tokens=8, temperature=0, ignore_eos=True),
            use_tqdm=False,
        )
        subscriber.poll(0.1)
        subscriber.catch_up()
        seen = {name: block.token_ids for name, block in subscriber.index.groups.get(0, {}).items()}
        truth = {event["hash"]: tuple(event["token_ids"]) for event in core.cached_content()}
        if seen != truth:
            raise SystemExit(f"turn {turn}: the subscriber knows {len(seen)} blocks, the engine {len(truth)}")
        hits = [output.num_cached_tokens for output in outputs]
        print(f"turn {turn}: {len(seen)} blocks cached; promised hits {promised}, found {hits}")
    llm.shutdown()


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connect", help="the engine's endpoint; without it, an engine runs in this process")
    parser.add_argument("--replay", help="its replay endpoint")
    args = parser.parse_args()
    if args.connect:
        follow(args.connect, args.replay)
    else:
        demonstrate()


if __name__ == "__main__":
    main()
