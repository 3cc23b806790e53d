"""The paged cache: where tokens go, what is written there, attention over it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from octavo.ops.backends import backend


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
    backend(slot).slot_mapping(slot, position, query_start, row_slot, block_table, block_size)


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
    backend(table).fetch_blocks(table, row_slot, seq_len, source, source_slots, source_stride, block_size)


def copy_runs(pool: Tensor, memory: Tensor, runs: Tensor, *, to_pool: bool) -> None:
    """Copies bytes between ``pool`` [P] uint8 and ``memory`` [M] uint8, which lies in host memory.

    Each of ``runs`` [n, 3] int64, in host memory too, is a place in pool, a place in memory and a number of
    bytes; those written must not overlap. On CUDA the copies are enqueued, where ``memory`` is registered
    with the device; this is no op for a captured graph.
    """
    backend(pool).copy_runs(pool, memory, runs, to_pool)


def cache_write(
    k: Tensor, v: Tensor, cache: Tensor, slot: Tensor, k_scale: float = 1.0, v_scale: float = 1.0
) -> None:
    """Stores ``k`` and ``v`` [N, Hk, D] into one layer's ``cache`` [B, 2, Hk, bs, D] at ``slot`` [N] int64.

    A negative slot is skipped. ``cache`` is usually a strided view of the pool. One of torch.float8_e4m3fn
    holds ``k / k_scale`` and ``v / v_scale``, rounded to nearest, ties to even, and held within +-448; NaN
    stays NaN.
    """
    backend(k).cache_write(k, v, cache, slot, k_scale, v_scale)


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
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """``rms_norm`` of each head of q and k (with weights ``q_norm`` and ``k_norm`` [D], both or neither),
    ``rope`` and ``cache_write`` in one pass and with their bits.

    q [N, Hq, D] changes in place; k and v [N, Hk, D] go into ``cache`` at ``slot``; what is left in k is
    unspecified. Arguments as in those ops.
    """
    options = (eps, weight_offset, interleaved, k_scale, v_scale)
    backend(q).norm_rope_cache(q, k, v, position, cos_sin, cache, slot, q_norm, k_norm, *options)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """How CUDA attention cuts a step's rows into work, and where that is written down.

    ``memory`` is a row of torch.uint8 on the device, of ``attention_plan_bytes``. Layers of one window, one
    number of heads and one head dim share a plan; ``plan_attention`` fills it once a step. Up to
    ``decode_queries`` query tokens a row is a decode row; no row has more than ``max_queries`` (0: unknown).
    With ``max_queries <= decode_queries`` no prefill kernel is launched. With ``fixed_split`` a row of one
    query has the same bits in any batch. With 0 ``decode_queries`` all rows go to one prefill kernel, and a
    query has the same bits whatever its row and its batch are.

    With ``share_prefixes`` the keys that neighbouring rows of one query have in common, by their lines of the
    block table, are computed once for all of them where that is faster: in steps with a prefill kernel, if it
    is the one for compute capability 9.0, without a window and without fixed splits. Elsewhere it is ignored.

    ``ready`` says to ``paged_attention`` that the plan and the block table were written before the kernel in
    front of it on the stream, which then writes nothing but queries, keys and values: the call finds its keys
    while that kernel runs. To ``norm_rope_attention`` it says that of positions, slots and norms too, and
    that the kernel in front writes ``q``, ``k`` and ``v`` alone. Every layer but a plan's first can say so.
    """

    memory: Tensor
    max_queries: int = 0
    decode_queries: int = 1
    fixed_split: bool = False
    share_prefixes: bool = False
    ready: bool = False

    @property
    def options(self) -> tuple[int, int, bool, bool]:
        """What a plan is made for, beside its rows, in the order of the ops' arguments."""
        return self.max_queries, self.decode_queries, self.fixed_split, self.share_prefixes


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
    share_prefixes: bool = False,
    like: Tensor | None = None,
) -> int:
    """Bytes of a plan for up to ``tokens`` query tokens of ``heads`` heads in ``rows`` rows; 0 on the CPU.

    Only the shape, dtype and device of ``cache`` [B, 2, Hk, bs, D] count, and the dtype of ``like``, which is
    the queries' and has to be given beside a cache of torch.float8_e4m3fn. A plan for more tokens or rows
    takes at least as much.
    """
    options = (max_queries, decode_queries, fixed_split, share_prefixes)
    return backend(cache).attention_plan_bytes(  # type: ignore[no-any-return]
        cache, tokens, rows, heads, window, *options, like
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
    chunked: bool = False,
    like: Tensor | None = None,
) -> None:
    """Fills ``plan`` for the rows of a step, whose q will be [tokens, heads, D] of the dtype of ``like``
    (None: the cache's). Does nothing on the CPU.

    The calls of ``paged_attention`` that use the plan take the same rows, shapes and window, ``chunked``
    or not.
    """
    backend(cache).plan_attention(
        plan.memory,
        cache,
        block_table,
        row_slot,
        query_start,
        seq_len,
        tokens,
        heads,
        window,
        *plan.options,
        chunked,
        like,
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
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    invariant: bool = False,
) -> None:
    """Causal attention of each row's newest tokens over its cached keys: prefill, decode and mixed rows in
    one call.

    out, q: [N, Hq, D] of T, D a multiple of 8 up to 256; cache: [B, 2, Hk, bs, D] of T or of
    torch.float8_e4m3fn, whose keys and values are what it holds times ``k_scale`` and ``v_scale``;
    block_table: [slots, max_blocks] int32; row_slot, seq_len: [R] int32; query_start: [R + 1] int32; sinks:
    [Hq] float32. Query i of row r stands at ``seq_len[r] - (query_start[r + 1] - query_start[r]) + i``; with
    ``window`` w > 0 it sees the last w keys, itself included, or with ``chunked`` those of its chunk
    ``[w * i, w * (i + 1))``. ``soft_cap`` c > 0 turns a score s into ``c * tanh(s / c)``. A sink is one more
    logit without a value. Rows with ``seq_len`` 0 write nothing. A row's result is the same bits in any
    batch and for any number of threads; with ``invariant`` a query's is, whatever other queries its row has
    beside it.

    CUDA runs by ``plan``, which ``plan_attention`` filled for these rows; without one it takes a plain
    kernel, right but slow. The CPU needs none. There ``invariant`` needs a plan of 0 ``decode_queries``.
    """
    rows = (block_table, row_slot, query_start, seq_len)
    args = (out, q, cache, *rows, scale, window, soft_cap, sinks)
    if plan is None:
        backend(q).paged_attention(
            *args, chunked=chunked, k_scale=k_scale, v_scale=v_scale, invariant=invariant
        )
        return
    backend(q).paged_attention(
        *args, plan.memory, *plan.options, chunked, k_scale, v_scale, invariant, plan.ready
    )


def norm_rope_attention(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor,
    cos_sin: Tensor,
    cache: Tensor,
    slot: Tensor,
    block_table: Tensor,
    row_slot: Tensor,
    query_start: Tensor,
    seq_len: Tensor,
    scale: float,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    interleaved: bool = False,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
    plan: AttentionPlan | None = None,
    chunked: bool = False,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    invariant: bool = False,
) -> None:
    """``norm_rope_cache`` of q, k and v [N, heads, D], then ``paged_attention`` of what it left, with their
    bits: all that stands between the projections and the product behind attention.

    Arguments as in those ops. ``slot`` [N] has to be where ``block_table`` has each token of a row, and
    negative for tokens of no row and of rows with ``seq_len`` 0. Where no row has more than one query, none
    may attend to what another row of the call stores. What is left in q and k is unspecified.

    CUDA does it in one kernel where a plan has 1 ``max_queries``, for up to 16 tokens of 16 bits, over a
    cache of their dtype, with up to 8 query heads of a KV head and D = 64, 128 or 256, all of it turned and
    not interleaved; else in the kernels of the two.
    """
    rows = (block_table, row_slot, query_start, seq_len)
    norms = (q_norm, k_norm, eps, weight_offset, interleaved)
    args = (out, q, k, v, position, cos_sin, cache, slot, *rows, scale, *norms, window, soft_cap, sinks)
    if plan is None:
        backend(q).norm_rope_attention(
            *args, chunked=chunked, k_scale=k_scale, v_scale=v_scale, invariant=invariant
        )
        return
    backend(q).norm_rope_attention(
        *args, plan.memory, *plan.options, chunked, k_scale, v_scale, invariant, plan.ready
    )


def latent_cache_write(latent: Tensor, rope: Tensor, cache: Tensor, slot: Tensor) -> None:
    """Stores ``latent`` [N, C] and ``rope`` [N, R] side by side into one layer's ``cache`` [B, bs, C + R] at
    ``slot`` [N] int64. A negative slot is skipped.
    """
    backend(latent).latent_cache_write(latent, rope, cache, slot)


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
    ``paged_attention``. Source: DeepSeek-V2 (2024), 2.1. On CUDA tensor cores take 16 bits,
    widths of whole steps of 16 up to 576, and C up to 512; the rest takes a plain kernel.
    """
    rows = (block_table, row_slot, query_start, seq_len)
    backend(q).latent_attention(out, q, cache, *rows, scale)
