"""From logits to tokens."""

from __future__ import annotations

from torch import Tensor

from octavo.ops.backends import backend


def argmax(token: Tensor, logits: Tensor) -> None:
    """The id of each row's largest logit (the lowest id among equals) into ``token`` [S] int32; -1 for a row
    with NaN. logits: [S, V] of T.
    """
    backend(logits).argmax(token, logits)


def sample(
    token: Tensor,
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    presence: Tensor,
    frequency: Tensor,
    repetition: Tensor,
    seed: Tensor,
    sample_index: Tensor,
    bias_start: Tensor,
    bias_token: Tensor,
    bias_value: Tensor,
    history: Tensor,
    history_len: Tensor,
    prompt_len: Tensor,
    mask: Tensor,
    scratch: Tensor | None = None,
) -> None:
    """Draws one token for each row of ``logits`` [S, V] of T into ``token`` [S] int32.

    Logits in float32 are clobbered; others need ``scratch`` [S, V] float32, where their edits are made. The
    dtype changes no token.

    Order: mask, bias, penalties, argmax if temperature < 1e-5, else temperature, min_p, top_k, top_p and the
    inverse cumulative distribution in token-id order at one uniform number hashed from (seed, sample_index).
    Per sample, [S]: temperature, top_p, min_p, presence, frequency, repetition float32; top_k, history_len,
    prompt_len int32; seed, history, mask uint64; sample_index int64. ``history`` holds addresses of int32
    tokens (prompt, then output), ``mask`` 0 or addresses of ceil(V / 32) uint32 words, bit 1 = allowed; both
    in memory of the tensors' device. Row s owns the entries ``bias_start[s]:bias_start[s + 1]`` (int32) of
    bias_token (int32) and bias_value (float32; -inf bans). A row that contains NaN, has nothing allowed or
    carries a parameter out of range gets token -1. A row's token is a function of the row alone.
    """
    backend(logits).sample(
        token,
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        presence,
        frequency,
        repetition,
        seed,
        sample_index,
        bias_start,
        bias_token,
        bias_value,
        history,
        history_len,
        prompt_len,
        mask,
        scratch,
    )


def logprobs(ids: Tensor, values: Tensor, rank: Tensor, logits: Tensor, token: Tensor, k: int) -> None:
    """Log-probabilities of raw ``logits`` [S, V] float32: of the given ``token`` [S] int32 and of the k
    largest.

    ids [S, k + 1] int32 and values [S, k + 1] float32: column 0 is the given token, then the k largest,
    falling, the lower id first among equals. rank [S] int32: 1 + how many logits are larger than the
    token's. Rows with token -1 get ids -1, values -inf, rank 0.
    """
    backend(logits).logprobs(ids, values, rank, logits, token, k)
