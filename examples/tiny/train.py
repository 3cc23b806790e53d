"""Trains the model `tiny` from the text in this folder and writes it as a Hugging Face folder.

    python examples/tiny/train.py --out python/octavo/assets/tiny

The same seed gives the same files on the same machine with the same versions of torch and tokenizers.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import HELD_SEED, report
from questions import QuestionSource, held_sets
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from vocabulary import IGNORED, Encoder, Sequence, save_tokenizer, train_tokenizer
from wordings import load_facts, load_wordings

VOCABULARY = 1024
MAX_LENGTH = 1024
SEED = 2
STEPS = 3600
BATCH_TOKENS = 4096  # padded tokens per optimizer step, about
MATRIX_RATE = 0.01  # peak rate of Muon, which trains the matrices of the layers
OTHER_RATE = 4e-3  # peak rate of AdamW, which trains the embedding table and the norms
WARMUP_STEPS = 60
PLAIN_SHARE = 0.15  # of the one-turn conversations: text without chat markers
SHORT_ANSWER = 10  # tokens: the first ones decide which answer it is, so most batches stop there
POOL = 8  # batches drawn together and sorted by length, so that little of each is padding


@dataclass(frozen=True)
class Shape:
    """A kind of batch: conversations of so many turns, answers cut to so many tokens or whole."""

    share: float
    turns: int
    answer_tokens: int | None

    def rows(self) -> int:
        """Conversations that make about BATCH_TOKENS tokens."""
        return BATCH_TOKENS // (self.turns * (60 if self.answer_tokens is None else 32))


SHAPES = (
    Shape(0.55, 1, SHORT_ANSWER),
    Shape(0.19, 1, None),
    Shape(0.10, 2, None),
    Shape(0.07, 4, None),
    Shape(0.05, 8, None),
    Shape(0.04, 15, None),
)


def model_config(encoder: Encoder) -> LlamaConfig:
    """A Llama of 0.95 million parameters, small enough for the wheel and for minutes of training."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=160,
        intermediate_size=416,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=encoder.end_id(),
        pad_token_id=encoder.pad_id(),
    )


def build_tokenizer(source: QuestionSource) -> Tokenizer:
    turns = [source.turn() for _ in range(12_000)]
    return train_tokenizer((text for turn in turns for text in (turn.question, turn.answer)), VOCABULARY)


def draw_row(source: QuestionSource, encoder: Encoder, draw: random.Random, shape: Shape) -> Sequence:
    if shape.turns > 1 or draw.random() > PLAIN_SHARE:
        system, turns = source.conversation(shape.turns)
        return encoder.conversation(system, turns, shape.answer_tokens)
    if draw.random() < 0.3:
        return encoder.plain(None, source.answer_alone())
    turn = source.turn()
    return encoder.plain(turn.question, turn.answer, shape.answer_tokens)


def batches(source: QuestionSource, encoder: Encoder, draw: random.Random) -> Iterator[list[Sequence]]:
    """Batches without end, each of one shape and of rows of about one length."""
    while True:
        pool: list[list[Sequence]] = []
        for shape in SHAPES:
            count = round(shape.share * POOL * len(SHAPES))
            rows = [draw_row(source, encoder, draw, shape) for _ in range(count * shape.rows())]
            rows.sort(key=lambda row: len(row[0]))
            pool += [rows[start : start + shape.rows()] for start in range(0, len(rows), shape.rows())]
        draw.shuffle(pool)
        yield from pool


def pad(batch: list[Sequence], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels as [B, T]; padding stands at the end, where causal attention cannot see it."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.full((len(batch), width), pad_id)
    labels = torch.full((len(batch), width), IGNORED)
    for row, (row_ids, row_labels) in enumerate(batch):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        labels[row, : len(row_labels)] = torch.tensor(row_labels)
    return ids, labels


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the labelled tokens; only their positions go through the output head."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    wanted = labels[:, 1:]
    chosen = wanted != IGNORED
    return functional.cross_entropy(model.lm_head(hidden[chosen]), wanted[chosen])


def optimizers_of(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest; AdamW alone learns more slowly."""
    inside = [parameter for parameter in model.model.layers.parameters() if parameter.dim() == 2]
    chosen = {id(parameter) for parameter in inside}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [
        torch.optim.Muon(inside, lr=MATRIX_RATE, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_at(step: int, steps: int) -> float:
    """Share of the peak rate: linear warm-up, then a cosine down to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)))


def train(
    model: LlamaForCausalLM, encoder: Encoder, source: QuestionSource, *, steps: int, seed: int
) -> None:
    """Minimises the loss on a fresh stream of questions; no question list is gone through twice."""
    draw = random.Random(seed)
    optimizers = optimizers_of(model)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    start = time.perf_counter()
    tokens, mean = 0, 0.0
    stream = batches(source, encoder, draw)
    for step in range(steps):
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * rate_at(step, steps)
        ids, labels = pad(next(stream), encoder.pad_id())
        loss = loss_of(model, ids, labels)
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        tokens += ids.numel()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - start
            speed = f"{tokens / seconds:.0f} tokens/s, {seconds:.0f} s"
            print(f"step {step + 1}: loss {mean:.4f}, {speed}", flush=True)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, encoder: Encoder, folder: Path) -> None:
    """Writes bf16 weights, both configs and the tokenizer."""
    model.generation_config = GenerationConfig(
        eos_token_id=encoder.end_id(), pad_token_id=encoder.pad_id(), do_sample=False, max_new_tokens=128
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, folder, MAX_LENGTH)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the model tiny.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps (default %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=SEED, help="of weights and questions (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    facts, wordings = load_facts(), load_wordings()
    source = QuestionSource(facts, wordings, options.seed)
    tokenizer = build_tokenizer(source)
    encoder = Encoder(tokenizer)
    model = LlamaForCausalLM(model_config(encoder))
    print(f"{model.num_parameters():,} parameters, {len(facts)} facts")
    train(model, encoder, source, steps=options.steps, seed=options.seed)

    options.out.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, encoder, options.out)
    report(options.out, held_sets(facts, wordings, HELD_SEED))


if __name__ == "__main__":
    main()
