"""What transformers says about a fixed set of prompts: greedy tokens and log-probabilities, once a model."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import tiny_models

NEW_TOKENS = 64
COUNT = 64


@dataclass(frozen=True)
class Truth:
    """Prompts, what follows each, and every position's log-probabilities (float64 of float32 logits)."""

    prompts: list[list[int]]
    tokens: list[list[int]]  # [COUNT][NEW_TOKENS], the end-of-sequence token ignored
    logprobs: list[Any]  # [COUNT] arrays [prompt + NEW_TOKENS - 1, V]: row p is for token p + 1
    eos: int

    def until_eos(self, i: int) -> list[int]:
        """The tokens of prompt i up to its end-of-sequence token, that included."""
        tokens = self.tokens[i]
        return tokens[: tokens.index(self.eos) + 1] if self.eos in tokens else tokens


def mixed_prompts() -> list[list[int]]:
    """Lengths 1 to 96; every other prompt begins with one of four prefixes of two to four blocks."""
    draw = random.Random(5)
    prompts = tiny_models.random_prompts(COUNT, seed=7)
    prefixes = tiny_models.random_prompts(4, low=32, high=64, seed=9)
    for i in range(0, COUNT, 2):
        prompts[i] = draw.choice(prefixes) + prompts[i][: draw.randint(1, 32)]
    return prompts


def compute_truth(model: Any) -> Truth:
    """Greedy generation, then one forward pass over all that was generated."""
    import torch

    prompts = mixed_prompts()
    with torch.inference_mode():
        if getattr(model.config, "attn_temperature_tuning", False):
            # Llama 4 tempers padding too, as if it were positions: only prompts of one length share a batch.
            tokens: list[list[int]] = [[] for _ in prompts]
            for length in set(map(len, prompts)):
                same = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
                for i, new in zip(same, _generate(model, [prompts[i] for i in same])):
                    tokens[i] = new
        else:
            tokens = _generate(model, prompts)
        logprobs = []
        for prompt, new in zip(prompts, tokens):
            logits = model(torch.tensor([prompt + new[:-1]])).logits[0]
            logprobs.append(torch.log_softmax(logits.double(), dim=-1).numpy())
    return Truth(prompts, tokens, logprobs, model.generation_config.eos_token_id)


def _generate(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """One batch, padded on the left."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    tokens: list[list[int]] = out[:, longest:].tolist()
    return tokens
