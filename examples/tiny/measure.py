"""Measures the model `tiny` on questions that training never showed.

    python examples/tiny/measure.py python/octavo/assets/tiny

An answer counts only if it is right word for word, its end marker included. Teacher forcing decides
this exactly: greedy decoding gives the wanted answer if and only if each of its tokens has the highest
logit after the tokens before it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from questions import Turn, held_sets
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM
from vocabulary import IGNORED, Encoder, Sequence
from wordings import load_facts, load_wordings

ROWS = 32
HELD_SEED = 20  # of the styles that held-out questions are put in; not a seed of training
SYSTEM = "You are a patient teacher."  # not among the system messages of training


def last_answer(encoder: Encoder, system: str | None, turns: list[Turn]) -> Sequence:
    """A conversation of which only the last answer is judged."""
    ids, labels = encoder.conversation(system, turns)
    before = len(encoder.conversation(system, turns[:-1])[0])
    return ids, [IGNORED] * before + labels[before:]


def exact_rows(model: LlamaForCausalLM, pad_id: int, rows: list[Sequence]) -> list[bool]:
    """For each row whether greedy decoding gives its labelled tokens."""
    results: list[bool] = []
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        width = max(len(ids) for ids, _ in part)
        padded = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids, _ in part])
        with torch.no_grad():
            best = model(input_ids=padded, use_cache=False).logits.argmax(-1)
        for row, (_, labels) in enumerate(part):
            wanted = [(place, label) for place, label in enumerate(labels) if label != IGNORED]
            results.append(all(label == int(best[row, place - 1]) for place, label in wanted))
    return results


def report(folder: Path, sets: dict[str, list[Turn]], *, verbose: bool = False) -> None:
    """Prints the share of exact answers per set, computing in fp32 and in bf16 from the bf16 file."""
    encoder = Encoder(Tokenizer.from_file(str(folder / "tokenizer.json")))
    everything = [turn for turns in sets.values() for turn in turns]

    def earlier(place: int, count: int) -> list[Turn]:
        return [everything[(place * 31 + step * 17 + 5) % len(everything)] for step in range(count)]

    kinds: dict[str, Callable[[int, Turn], Sequence]] = {
        "first turn": lambda place, turn: last_answer(encoder, None, [turn]),
        "system message": lambda place, turn: last_answer(encoder, SYSTEM, [turn]),
        "second turn": lambda place, turn: last_answer(encoder, None, [*earlier(place, 1), turn]),
        "sixth turn": lambda place, turn: last_answer(encoder, None, [*earlier(place, 5), turn]),
        "no template": lambda place, turn: encoder.plain(turn.question, turn.answer),
    }
    for dtype in (torch.float32, torch.bfloat16):
        model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        name = str(dtype).removeprefix("torch.")
        print(f"exact answers in percent, computed in {name}: {', '.join(kinds)}")
        for name, turns in sets.items():
            shares = []
            for kind, row in kinds.items():
                rows = [row(place, turn) for place, turn in enumerate(turns)]
                exact = exact_rows(model, encoder.pad_id(), rows)
                shares.append(100 * sum(exact) / len(exact))
                if verbose and dtype is torch.float32 and kind == "first turn":
                    print_missed(turns, exact)
            print(f"  {name} ({len(turns)}): " + ", ".join(f"{share:.1f}" for share in shares), flush=True)


def print_missed(turns: list[Turn], exact: list[bool]) -> None:
    for turn, right in zip(turns, exact, strict=True):
        if not right:
            print(f"    missed: {turn.question!r}, wanted {turn.answer[:40]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the model tiny on held-out questions.")
    parser.add_argument("folder", type=Path, help="folder of the model")
    parser.add_argument("--verbose", action="store_true", help="print the missed questions")
    options = parser.parse_args()
    torch.set_num_threads(2)
    report(options.folder, held_sets(load_facts(), load_wordings(), HELD_SEED), verbose=options.verbose)


if __name__ == "__main__":
    main()
