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

from octavo.ops.attention import (
    AttentionPlan,
    attention_plan_bytes,
    cache_write,
    copy_runs,
    fetch_blocks,
    latent_attention,
    latent_cache_write,
    norm_rope_attention,
    norm_rope_cache,
    paged_attention,
    plan_attention,
    slot_mapping,
)
from octavo.ops.backends import (
    has_cuda,
    isa,
    num_threads,
    register_backend,
    set_isa,
    set_num_threads,
    stream_queue,
    thread_backend,
)
from octavo.ops.invariant import (
    gemm,
    soft_cap,
)
from octavo.ops.moe import (
    grouped_linear,
    moe_combine,
    moe_group,
    moe_route,
)
from octavo.ops.rows import (
    add_rms_norm,
    clamped_swiglu,
    fill_tokens,
    gated_rms_norm,
    gelu_tanh_mul,
    keep_tokens,
    linear,
    rms_norm,
    rope,
    silu_mul,
)
from octavo.ops.sampling import (
    argmax,
    logprobs,
    sample,
)
from octavo.ops.state import (
    causal_conv1d,
    ssm_scan,
    state_mapping,
)

__all__ = [
    "AttentionPlan",
    "add_rms_norm",
    "argmax",
    "attention_plan_bytes",
    "cache_write",
    "causal_conv1d",
    "copy_runs",
    "clamped_swiglu",
    "gated_rms_norm",
    "fetch_blocks",
    "fill_tokens",
    "gelu_tanh_mul",
    "gemm",
    "grouped_linear",
    "has_cuda",
    "isa",
    "keep_tokens",
    "latent_attention",
    "latent_cache_write",
    "linear",
    "logprobs",
    "norm_rope_attention",
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
    "soft_cap",
    "ssm_scan",
    "state_mapping",
    "stream_queue",
    "thread_backend",
]
