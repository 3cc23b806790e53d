// Paged attention on CUDA: the op of ops.h with its tensors in device memory.
//
// Two calls. PlanPagedAttention cuts a step's rows into work, on the device and once a step for
// each (window, heads, head dim) of the model. PagedAttention computes one layer by that plan. Both
// only enqueue kernels: no allocation, no synchronisation, nothing read on the host but shapes, so
// both may be captured into a graph. Row counts, lengths and tables are read on the device; the
// shapes of the tensors are capacities: a row whose seq_len is 0, or that owns no token, does
// nothing.
//
// Rows of up to decode_queries query tokens go to the decode kernel (bound by the bytes of K and
// V), longer ones to the prefill kernel (bound by FLOPs), both by one plan. bfloat16 and float16
// with a head dim of 64, 128 or 256 and blocks of a multiple of 16 tokens run on tensor cores;
// every other shape that the op allows runs on a plain kernel, which is right but not fast. On
// compute capability 9.0 the prefill kernel is one of wgmma and TMA: a call then encodes a tensor
// map of the cache, which a captured graph keeps, so the cache's address has to stay.
//
// Keys in front of a window are read with the tile that they stand in, and weigh nothing: the
// blocks that a row's line of the table names for them may hold anything but NaN and infinity.
//
// Results repeat bit for bit for the same rows. With fixed_split a row of one query has the same
// bits in any batch. With decode_queries 0 every row goes to the portable prefill kernel, whose key
// tiles stand at multiples of their size and are added in one order: a query then has the same bits
// in any batch and in any chunk of its prompt. A call that is to be invariant needs that.
#pragma once

#include <cstdint>

#include "octavo/cuda_ops.h"

namespace octavo::cuda {

struct AttentionOptions {
  // No row has more query tokens than this; 0 is unknown. A value <= decode_queries leaves the
  // prefill kernel out of the step.
  int64_t max_queries = 0;
  int64_t decode_queries = 1;  // 0: there is no decode kernel in the step
  // Cut long rows at places that depend on the row alone, not where the batch balances best.
  bool fixed_split = false;
  // Compute a prefix that neighbouring rows of one query have in common, by their lines of the
  // block table, once for all of them where that is faster. Heeded where there is a prefill kernel
  // in the step that is the one of wgmma, no window and no fixed split; the plan is larger then,
  // and a row's bits depend on its neighbours.
  bool share_prefixes = false;
  // Let each kernel begin its prologue before the one in front of it has ended (sm_90 on).
  bool dependent_launch = true;
};

// A plan's memory. It belongs to the caller, on the device, 256-byte aligned, and needs no initial
// value. Calls that share one must be ordered by their stream.
struct AttentionPlan {
  void* memory = nullptr;
  int64_t bytes = 0;
  AttentionOptions options;
  // Of a call of PagedAttention or NormRopeAttention: the plan and the block table were written
  // before the kernel in front of it on the stream, which may write queries, keys and values only.
  // Tiles are then looked up while that kernel runs. Of NormRopeAttention also positions, slots,
  // norms and the cache: what is in front writes q, k and v. Every layer but a plan's first can say
  // so.
  bool ready = false;
};

// Bytes of device memory that a plan for these shapes takes. Only shapes, dtypes and the window of
// `a` are read. REQUIRES: Validate(a) would be ok, were there memory.
Result<int64_t> AttentionPlanBytes(const PagedAttentionArgs& a, const AttentionOptions& options);

// Writes the plan for the rows of `a` (query_start, seq_len, row_slot) and for its window, heads
// and head dim.
Status PlanPagedAttention(const PagedAttentionArgs& a, const AttentionPlan& plan, Stream stream);

// REQUIRES: the plan was written for the same rows, shapes, window and options, in stream order
// before this. Unlike the CPU op it cannot check indices: a block table entry outside the cache is
// undefined behaviour.
Status PagedAttention(const PagedAttentionArgs& a, const AttentionPlan& plan, Stream stream);

// One layer from its projections on, by the same plan. One kernel where no row has more than one
// query (max_queries 1), for up to 16 tokens of 16 bits over a cache of the same, 8 query heads of
// a KV head, D = 64, 128 or 256, all of it turned, halves against each other, every row on 16
// bytes; else NormRopeCache and PagedAttention. The bits are the same.
Status NormRopeAttention(const NormRopeAttentionArgs& a, const AttentionPlan& plan, Stream stream);
Status NormRopeAttention(const NormRopeAttentionArgs& a, Stream stream);

// One layer without a plan, on the plain kernel: for tests and for steps that are too rare to plan.
Status PagedAttention(const PagedAttentionArgs& a, Stream stream);

}  // namespace octavo::cuda
