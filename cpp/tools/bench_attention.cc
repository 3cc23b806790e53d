// CPU paged attention: a decode batch reads the cache at the speed of memory, a prefill computes.
#include <cmath>
#include <vector>

#include "base/check.h"
#include "octavo/ops.h"
#include "tools/bench.h"

namespace octavo::tools {
namespace {

// A layer of an 8-billion-parameter Llama, in float32.
constexpr int64_t kHeads = 32;
constexpr int64_t kKvHeads = 8;
constexpr int64_t kHeadDim = 128;
constexpr int64_t kBlockSize = 16;

// Rows of `queries` new tokens each, `context` cached tokens a row.
double AttentionSeconds(int64_t rows, int64_t queries, int64_t context) {
  const int64_t blocks = (context + kBlockSize - 1) / kBlockSize;
  const int64_t tokens = rows * queries;
  std::vector<float> q(tokens * kHeads * kHeadDim, 0.01f);
  std::vector<float> out(q.size());
  std::vector<float> cache((rows * blocks + 1) * 2 * kKvHeads * kBlockSize * kHeadDim, 0.02f);
  std::vector<int32_t> table(rows * blocks);
  for (size_t i = 0; i < table.size(); ++i) table[i] = int32_t(i) + 1;
  std::vector<int32_t> row_slot(rows), query_start(rows + 1), seq_len(rows, int32_t(context));
  for (int64_t r = 0; r < rows; ++r) {
    row_slot[r] = int32_t(r);
    query_start[r + 1] = int32_t((r + 1) * queries);
  }
  PagedAttentionArgs a;
  a.out = TensorView::Dense(out.data(), DType::kF32, {tokens, kHeads, kHeadDim});
  a.q = TensorView::Dense(q.data(), DType::kF32, {tokens, kHeads, kHeadDim});
  a.cache = TensorView::Dense(cache.data(), DType::kF32,
                              {rows * blocks + 1, 2, kKvHeads, kBlockSize, kHeadDim});
  a.block_table = TensorView::Dense(table.data(), DType::kI32, {rows, blocks});
  a.row_slot = TensorView::Dense(row_slot.data(), DType::kI32, {rows});
  a.query_start = TensorView::Dense(query_start.data(), DType::kI32, {rows + 1});
  a.seq_len = TensorView::Dense(seq_len.data(), DType::kI32, {rows});
  a.scale = 1.0f / std::sqrt(float(kHeadDim));
  OCTAVO_CHECK(cpu::PagedAttention(a).ok(), "attention refused its arguments");  // warm-up
  const auto start = BenchClock::now();
  OCTAVO_CHECK(cpu::PagedAttention(a).ok(), "attention refused its arguments");
  return Nanoseconds(start, BenchClock::now()) / 1e9;
}

}  // namespace

Measures BenchAttention(const Effort& effort) {
  const int64_t context = effort.quick ? 128 : 1024;
  Measures measures;
  for (int round = 0; round < effort.rounds; ++round) {
    constexpr int64_t kRows = 16;
    const double decode = AttentionSeconds(kRows, 1, context);
    const double bytes = double(kRows * context * kKvHeads * kHeadDim) * 2 * sizeof(float);
    const double prefill = AttentionSeconds(1, context, context);
    // Two products of a multiply and an add for each visible pair of positions.
    const double pairs = double(context) * double(context + 1) / 2;
    const double flops = pairs * double(kHeads * kHeadDim) * 4;
    KeepBest(&measures, {{"attention_decode", bytes / decode / 1e9, "GB/s"},
                         {"attention_prefill", flops / prefill / 1e9, "GFLOP/s"}});
  }
  return measures;
}

}  // namespace octavo::tools
