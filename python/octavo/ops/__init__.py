"""The ops of a model step over torch tensors, in place or into tensors that the caller owns.

Letters in shapes: N tokens, R rows, S samples, V vocabulary, H hidden, Hq query heads, Hk KV heads, D head
dim, B blocks, bs tokens in a block; of recurrent layers: C channels, K taps of a convolution, H heads of P
values, S state size, G groups of heads. ``T`` is float32, bfloat16 or float16, one and the same within a
call. The last dimension is contiguous, the others may be strided. Every op raises ``ValueError`` with the
tensor's name for a wrong dtype or shape and for an index out of range, before it touches memory, and
``TypeError`` for what is no tensor.

The device of the tensors decides where an op runs; all of a call have to lie on one. On CUDA an op goes to
torch's current stream of that device, allocates nothing, does not synchronise and may be captured into a
graph; there nobody can look at indices first, so a token, row or entry with one out of range is skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

import octavo._ops as _ops

__all__ = [
    "AttentionPlan",
    "add_rms_norm",
    "argmax",
    "attention_plan_bytes",
    "cache_write",
    "causal_conv1d",
    "clamped_swiglu",
    "gated_rms_norm",
    "fetch_blocks",
    "fill_tokens",
    "gelu_tanh_mul",
    "grouped_linear",
    "has_cuda",
    "isa",
    "keep_tokens",
    "latent_attention",
    "latent_cache_write",
    "linear",
    "logprobs",
    "norm_rope_cache",
    "moe_combine",
    "moe_group",
    "moe_route",
    "num_threads",
    "paged_attention",
    "plan_attention",
    "register_backend",
    "rms_norm",
    "rope",
    "sample",
    "set_isa",
    "set_num_threads",
    "silu_mul",
    "slot_mapping",
    "ssm_scan",
    "state_mapping",
    "thread_backend",
]

_backends: dict[str, ModuleType] = {"cpu": _ops}
if _ops.has_cuda():
    _backends["cuda"] = _ops


def register_backend(device_type: str, module: ModuleType) -> None:
    """Makes ``module``, which has this module's op functions, the backend of tensors on ``device_type``."""
    _backends[device_type] = module


def _backend(tensor: Tensor) -> ModuleType:
    """The module whose functions run on the tensor's device. Raises ``ValueError`` where there is none."""
    if tensor.is_cpu:
        return _ops
    device = tensor.device.type
    if device not in _backends:
        raise ValueError(
            f"no ops for device {device!r}: this build has {sorted(_backends)}; move the tensors there"
            + (" or install from source with -C cmake.define.OCTAVO_CUDA=ON" if device == "cuda" else "")
        )
    return _backends[device]


def rms_norm(out: Tensor, x: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0) -> None:
    """``out = x / sqrt(mean(x^2) + eps) * (weight + weight_offset)`` over the last dimension.

    out, x: [N, H] or [N, heads, H] of T (``out`` may be ``x``); weight: [H] of T. Gemma's offset is 1.
    """
    _backend(x).rms_norm(out, x, weight, eps, weight_offset)


def add_rms_norm(
    out: Tensor, x: Tensor, residual: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0
) -> None:
    """``residual += x`` (rounded to T), then ``out = rms_norm(residual)``. All [N, H] of T; ``out`` may be
    ``x``.
    """
    _backend(x).add_rms_norm(out, x, residual, weight, eps, weight_offset)


def rope(q: Tensor, k: Tensor, position: Tensor, cos_sin: Tensor, interleaved: bool) -> None:
    """Rotates the first R dimensions of every head of ``q`` [N, Hq, D] and ``k`` [N, Hk, D] in place.

    position: [N] int32; cos_sin: [max_pos, R] float32, R/2 cosines then R/2 sines. ``interleaved`` rotates
    neighbouring pairs (GPT-J), otherwise the two halves are rotated against each other (neox). Source: Su et
    al. 2021.
    """
    _backend(q).rope(q, k, position, cos_sin, interleaved)


def slot_mapping(
    slot: Tensor,
    position: Tensor,
    query_start: Tensor,
    row_slot: Tensor,
    block_table: Tensor,
    block_size: int,
) -> None:
    """Writes each token's cache slot, ``block * block_size + position % block_size``, into ``slot`` [N]
    int64.

    position: [N] int32; query_start: [R + 1] int32; row_slot: [R] int32, each row's line in block_table
    [slots, max_blocks] int32. Tokens past ``query_start[R]`` get -1, which ``cache_write`` skips.
    """
    _backend(slot).slot_mapping(slot, position, query_start, row_slot, block_table, block_size)


def fetch_blocks(
    table: Tensor,
    row_slot: Tensor,
    seq_len: Tensor,
    source: int,
    source_slots: int,
    source_stride: int,
    block_size: int,
) -> None:
    """Brings a step's lines of a block table to ``table`` [slots, entries] int32 from host memory.

    ``table[s, i] = source[s, i]`` for ``s = row_slot[r]`` and ``i < ceil(seq_len[r] / block_size)``, both [R]
    int32. ``source`` is the address of an int32 table of ``source_slots`` lines of ``source_stride`` entries,
    registered with the device where that is no CPU; rows beyond its lines fetch nothing.
    """
    _backend(table).fetch_blocks(table, row_slot, seq_len, source, source_slots, source_stride, block_size)


def cache_write(k: Tensor, v: Tensor, cache: Tensor, slot: Tensor) -> None:
    """Stores ``k`` and ``v`` [N, Hk, D] into one layer's ``cache`` [B, 2, Hk, bs, D] at ``slot`` [N] int64.

    A negative slot is skipped. ``cache`` is usually a strided view of the pool.
    """
    _backend(k).cache_write(k, v, cache, slot)


def norm_rope_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor,
    cos_sin: Tensor,
    cache: Tensor,
    slot: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    interleaved: bool = False,
) -> None:
    """``rms_norm`` of each head of q and k (with weights ``q_norm`` and ``k_norm`` [D], both or neither),
    ``rope`` and ``cache_write`` in one pass and with their bits.

    q [N, Hq, D] changes in place; k and v [N, Hk, D] go into ``cache`` at ``slot``; what is left in k is
    unspecified. Arguments as in those ops.
    """
    _backend(q).norm_rope_cache(
        q, k, v, position, cos_sin, cache, slot, q_norm, k_norm, eps, weight_offset, interleaved
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """How CUDA attention cuts a step's rows into work, and where that is written down.

    ``memory`` is a row of torch.uint8 on the device, of ``attention_plan_bytes``. Layers of one window, one
    number of heads and one head dim share a plan; ``plan_attention`` fills it once a step. Up to
    ``decode_queries`` query tokens a row is a decode row; no row has more than ``max_queries`` (0: unknown).
    With ``max_queries <= decode_queries`` no prefill kernel is launched. With ``fixed_split`` a row of one
    query has the same bits in any batch.
    """

    memory: Tensor
    max_queries: int = 0
    decode_queries: int = 1
    fixed_split: bool = False


def attention_plan_bytes(
    cache: Tensor,
    tokens: int,
    rows: int,
    heads: int,
    window: int = 0,
    *,
    max_queries: int = 0,
    decode_queries: int = 1,
    fixed_split: bool = False,
) -> int:
    """Bytes of a plan for up to ``tokens`` query tokens of ``heads`` heads in ``rows`` rows; 0 on the CPU.

    Only the shape, dtype and device of ``cache`` [B, 2, Hk, bs, D] count. A plan for more tokens or rows
    takes at least as much.
    """
    return _backend(cache).attention_plan_bytes(  # type: ignore[no-any-return]
        cache, tokens, rows, heads, window, max_queries, decode_queries, fixed_split
    )


def plan_attention(
    plan: AttentionPlan,
    cache: Tensor,
    block_table: Tensor,
    row_slot: Tensor,
    query_start: Tensor,
    seq_len: Tensor,
    tokens: int,
    heads: int,
    window: int = 0,
) -> None:
    """Fills ``plan`` for the rows of a step, whose q will be [tokens, heads, D]. Does nothing on the CPU.

    The calls of ``paged_attention`` that use the plan take the same rows, shapes and window.
    """
    _backend(cache).plan_attention(
        plan.memory,
        cache,
        block_table,
        row_slot,
        query_start,
        seq_len,
        tokens,
        heads,
        window,
        plan.max_queries,
        plan.decode_queries,
        plan.fixed_split,
    )


def paged_attention(
    out: Tensor,
    q: Tensor,
    cache: Tensor,
    block_table: Tensor,
    row_slot: Tensor,
    query_start: Tensor,
    seq_len: Tensor,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
    plan: AttentionPlan | None = None,
    chunked: bool = False,
) -> None:
    """Causal attention of each row's newest tokens over its cached keys: prefill, decode and mixed rows in
    one call.

    out, q: [N, Hq, D] of T, D a multiple of 8 up to 256; cache: [B, 2, Hk, bs, D] of T; block_table: [slots,
    max_blocks] int32; row_slot, seq_len: [R] int32; query_start: [R + 1] int32; sinks: [Hq] float32. Query i
    of row r stands at ``seq_len[r] - (query_start[r + 1] - query_start[r]) + i``; with ``window`` w > 0 it
    sees the last w keys, itself included, or with ``chunked`` (CPU only) those of its chunk ``[w * i, w * (i
    + 1))``. ``soft_cap`` c > 0 turns a score s into ``c * tanh(s / c)``. A sink is one more logit without a
    value. Rows with ``seq_len`` 0 write nothing. A row's result is the same bits in any batch and for any
    number of threads.

    CUDA runs by ``plan``, which ``plan_attention`` filled for these rows; without one it takes a plain
    kernel, right but slow. The CPU needs none.
    """
    rows = (block_table, row_slot, query_start, seq_len)
    args = (out, q, cache, *rows, scale, window, soft_cap, sinks)
    if plan is None:
        _backend(q).paged_attention(*args, chunked=chunked)
        return
    options = (plan.memory, plan.max_queries, plan.decode_queries, plan.fixed_split)
    _backend(q).paged_attention(*args, *options, chunked)


def latent_cache_write(latent: Tensor, rope: Tensor, cache: Tensor, slot: Tensor) -> None:
    """Stores ``latent`` [N, C] and ``rope`` [N, R] side by side into one layer's ``cache`` [B, bs, C + R] at
    ``slot`` [N] int64. A negative slot is skipped.
    """
    _backend(latent).latent_cache_write(latent, rope, cache, slot)


def latent_attention(
    out: Tensor,
    q: Tensor,
    cache: Tensor,
    block_table: Tensor,
    row_slot: Tensor,
    query_start: Tensor,
    seq_len: Tensor,
    scale: float,
) -> None:
    """Causal attention over latents, in the absorbed form: for all heads a key is a whole vector of ``cache``
    [B, bs, C + R], and its value the first C entries.

    q: [N, H, C + R], out: [N, H, C] of T, C + R up to 1024. Rows, positions and bits as in
    ``paged_attention``. Source: DeepSeek-V2 (2024), 2.1. CPU only.
    """
    rows = (block_table, row_slot, query_start, seq_len)
    _backend(q).latent_attention(out, q, cache, *rows, scale)


def silu_mul(out: Tensor, gate_up: Tensor) -> None:
    """``out = silu(gate) * up`` with ``gate_up`` [N, 2I] = [gate | up]; out: [N, I] of T."""
    _backend(out).silu_mul(out, gate_up)


def gelu_tanh_mul(out: Tensor, gate_up: Tensor) -> None:
    """``out = gelu(gate, tanh approximation) * up`` with ``gate_up`` [N, 2I] = [gate | up]; out: [N, I] of
    T.
    """
    _backend(out).gelu_tanh_mul(out, gate_up)


def linear(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, weight_ready: bool = False
) -> None:
    """``out = x weight^T + bias`` for few rows: it reads the weight once, at the speed of memory.

    out: [M, N], x: [M, K], weight: [N, K], bias: [N] of T. A row's result is the same bits for any M and any
    number of threads. CUDA takes bfloat16 and float16, M up to 16 and K a multiple of 8; with
    ``weight_ready`` (nothing enqueued before writes the weight) it reads ahead while the kernel in front of
    it still runs.
    """
    _backend(x).linear(out, x, weight, bias, weight_ready)


def fill_tokens(token_id: Tensor, query_start: Tensor, row_slot: Tensor, last_token: Tensor) -> None:
    """Replaces each -1 in ``token_id`` [N] int32 by what its row's slot sampled last, in place.

    query_start: [R + 1], row_slot: [R], last_token: [slots], all int32. A last token of -1, of a row that
    failed, becomes 0: what the row computes is dropped, but its embedding must exist.
    """
    _backend(token_id).fill_tokens(token_id, query_start, row_slot, last_token)


def keep_tokens(last_token: Tensor, token: Tensor, sample_row: Tensor, row_slot: Tensor) -> None:
    """``last_token[row_slot[sample_row]] = token``: what the next step's ``fill_tokens`` takes.

    last_token: [slots], token and sample_row: [S], row_slot: [R], all int32.
    """
    _backend(token).keep_tokens(last_token, token, sample_row, row_slot)


def moe_route(
    ids: Tensor,
    weights: Tensor,
    logits: Tensor,
    sigmoid: bool,
    renormalize: bool,
    bias: Tensor | None = None,
    *,
    groups: int = 1,
    top_groups: int = 1,
    group_best: int = 1,
    scale: float = 1.0,
) -> None:
    """The k experts of each token with the largest scores, falling, into ``ids`` [N, k] int32, and their
    weights into ``weights`` [N, k] float32, from ``logits`` [N, E] float32.

    Scores are the softmax over all experts, or the sigmoid of each. They are the weights: ``renormalize``
    divides them by the sum of the k, ``scale`` multiplies them. ``bias`` [E] float32 is added to the scores
    that are compared, not to weights. Of ``groups`` runs of neighbouring experts those ``top_groups`` are
    chosen from whose ``group_best`` largest compared scores have the largest sums. Lower ids first among
    equals. A row with NaN gets NaN weights. Source of groups and bias: DeepSeek-V2 and -V3 (2024).
    """
    _backend(logits).moe_route(
        ids, weights, logits, sigmoid, renormalize, bias, groups, top_groups, group_best, scale
    )


def moe_group(place: Tensor, token: Tensor, start: Tensor, ids: Tensor) -> None:
    """Sorts the pairs of token and expert of ``ids`` [N, k] int32 by expert.

    Pair (n, j) goes to ``place[n, j]`` [N, k] int32, ``token`` [N * k] int32 names the token at each place,
    and expert e owns the places ``start[e]:start[e + 1]`` ([E + 1] int32).
    """
    _backend(ids).moe_group(place, token, start, ids)


def grouped_linear(out: Tensor, x: Tensor, weight: Tensor, start: Tensor, bias: Tensor | None = None) -> None:
    """``out = x weight[e]^T + bias[e]`` for the rows ``start[e]:start[e + 1]`` of each expert, few of them.

    out: [P, M], x: [P, K], weight: [E, M, K], bias: [E, M] of T; start: [E + 1] int32 from 0 to P. As
    ``linear`` it reads each weight that is needed once.
    """
    _backend(x).grouped_linear(out, x, weight, start, bias)


def moe_combine(out: Tensor, rows: Tensor, place: Tensor, weights: Tensor) -> None:
    """``out[n]`` = the sum over j of ``weights[n, j] * rows[place[n, j]]``, in the order of j.

    out: [N, H], rows: [P, H] of T; place: [N, k] int32; weights: [N, k] float32.
    """
    _backend(rows).moe_combine(out, rows, place, weights)


def clamped_swiglu(out: Tensor, gate_up: Tensor, alpha: float, limit: float) -> None:
    """``out = (clamp(up, -limit, limit) + 1) * g * sigmoid(alpha * g)``, g the gate, at most ``limit``.

    ``gate_up`` [N, 2I] = [gate | up]; out: [N, I] of T.
    """
    _backend(out).clamped_swiglu(out, gate_up, alpha, limit)


def argmax(token: Tensor, logits: Tensor) -> None:
    """The id of each row's largest logit (the lowest id among equals) into ``token`` [S] int32; -1 for a row
    with NaN.
    """
    _backend(logits).argmax(token, logits)


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
) -> None:
    """Draws one token for each row of ``logits`` [S, V] float32 (clobbered) into ``token`` [S] int32.

    Order: mask, bias, penalties, argmax if temperature < 1e-5, else temperature, min_p, top_k, top_p and the
    inverse cumulative distribution in token-id order at one uniform number hashed from (seed, sample_index).
    Per sample, [S]: temperature, top_p, min_p, presence, frequency, repetition float32; top_k, history_len,
    prompt_len int32; seed, history, mask uint64; sample_index int64. ``history`` holds addresses of int32
    tokens (prompt, then output), ``mask`` 0 or addresses of ceil(V / 32) uint32 words, bit 1 = allowed; both
    in memory of the tensors' device. Row s owns the entries ``bias_start[s]:bias_start[s + 1]`` (int32) of
    bias_token (int32) and bias_value (float32; -inf bans). A row that contains NaN, has nothing allowed or
    carries a parameter out of range gets token -1. A row's token is a function of the row alone.
    """
    _backend(logits).sample(
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
    )


def logprobs(ids: Tensor, values: Tensor, rank: Tensor, logits: Tensor, token: Tensor, k: int) -> None:
    """Log-probabilities of raw ``logits`` [S, V] float32: of the given ``token`` [S] int32 and of the k
    largest.

    ids [S, k + 1] int32 and values [S, k + 1] float32: column 0 is the given token, then the k largest,
    falling, the lower id first among equals. rank [S] int32: 1 + how many logits are larger than the
    token's. Rows with token -1 get ids -1, values -inf, rank 0.
    """
    _backend(logits).logprobs(ids, values, rank, logits, token, k)


def state_mapping(
    source: Tensor,
    target: Tensor,
    query_start: Tensor,
    row_slot: Tensor,
    seq_len: Tensor,
    block_table: Tensor,
    block_size: int,
) -> None:
    """Which block of a recurrent group each row reads its state from and which it writes it to, [R] int32
    both.

    query_start: [R + 1] int32; row_slot, seq_len: [R] int32; block_table: [slots, max_blocks] int32. The
    state after a position lies in the table entry of that position. A row from position 0 gets source -1.
    """
    _backend(source).state_mapping(source, target, query_start, row_slot, seq_len, block_table, block_size)


def causal_conv1d(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    query_start: Tensor,
    source: Tensor,
    target: Tensor,
) -> None:
    """``out = silu(conv(x) + bias)``, each channel alone over its last K inputs.

    out, x: [N, C] of T; weight: [C, K], K 2..8; bias: [C]; state: [B, K - 1, C] of T, the inputs before a
    row's first token, oldest first; query_start: [R + 1] int32. Row r starts from the state in block
    ``source[r]`` ([R] int32; negative: from zero) and leaves the one after its last token in ``target[r]``
    (negative: the row is skipped). A row's result is the same bits in any batch and in any chunks.
    """
    _backend(x).causal_conv1d(out, x, weight, bias, state, query_start, source, target)


def ssm_scan(
    out: Tensor,
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    skip: Tensor,
    state: Tensor,
    query_start: Tensor,
    source: Tensor,
    target: Tensor,
) -> None:
    """The recurrence of Mamba2 for each head, with d = softplus(dt + dt_bias):
    ``state[s, p] = state[s, p] * exp(-exp(a_log) * d) + d * b[s] * x[p]``, then
    ``out[p] = sum(c[s] * state[s, p]) + skip * x[p]``.

    out, x: [N, H, P]; dt: [N, H]; b, c: [N, G, S], S up to 1024; a_log, dt_bias, skip: [H], all of T; state:
    [B, H, S, P] float32; query_start, source and target as in ``causal_conv1d``. G divides H. Source: Dao and
    Gu 2024.
    """
    _backend(x).ssm_scan(out, x, dt, b, c, a_log, dt_bias, skip, state, query_start, source, target)


def gated_rms_norm(out: Tensor, x: Tensor, gate: Tensor, weight: Tensor, groups: int, eps: float) -> None:
    """``y = x * silu(gate)``, then ``out = y / sqrt(mean(y^2) + eps) * weight``, the mean over each of
    ``groups`` runs of columns.

    out, x, gate: [N, I] of T (``out`` may be ``x``); weight: [I] of T.
    """
    _backend(x).gated_rms_norm(out, x, gate, weight, groups, eps)


def has_cuda() -> bool:
    """Whether this build has the CUDA ops. Says nothing about a device."""
    return _ops.has_cuda()


def set_num_threads(n: int) -> None:
    """How many threads a CPU op may use; 0 follows ``torch.set_num_threads``."""
    _ops.set_num_threads(n)


def num_threads() -> int:
    """How many threads a CPU op may use now."""
    return _ops.num_threads()


def thread_backend() -> str:
    """``openmp`` where the ops borrow torch's OpenMP team, ``pool`` where they run a pool of their own."""
    return _ops.thread_backend()


def isa() -> str:
    """The instruction set of the CPU ops: ``avx512``, ``avx2`` or ``base`` (SSE2 or NEON)."""
    return _ops.isa()


def set_isa(name: str) -> None:
    """Chooses the instruction set, for tests. Raises ``RuntimeError`` where the machine or the build lacks
    it.
    """
    _ops.set_isa(name)
