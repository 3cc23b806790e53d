// CPU paged attention: a decode batch reads the cache at the speed of memory, a prefill computes.
#include <cmath>
#include <vector>

#include "base/check.h"
#include "octavo/ops.h"
#include "tools/bench.h"

namespace octavo::tools {
namespace {

// A layer of an 8-billion-parameter Llama.
constexpr int64_t kHeads = 32;
constexpr int64_t kKvHeads = 8;
constexpr int64_t kHeadDim = 128;
constexpr int64_t kBlockSize = 16;

// Rows of `queries` new tokens each, `context` cached tokens a row.
double AttentionSeconds(DType dtype, DType cache_dtype, int64_t rows, int64_t queries,
                        int64_t context) {
  const int64_t blocks = (context + kBlockSize - 1) / kBlockSize;
  const int64_t tokens = rows * queries;
  constexpr unsigned char kByte = 0x12;  // a small positive number in every format
  std::vector<unsigned char> q(tokens * kHeads * kHeadDim * DTypeSize(dtype), kByte);
  std::vector<unsigned char> out(q.size());
  const int64_t elements = (rows * blocks + 1) * 2 * kKvHeads * kBlockSize * kHeadDim;
  std::vector<unsigned char> cache(elements * DTypeSize(cache_dtype), kByte);
  std::vector<int32_t> table(rows * blocks);
  for (size_t i = 0; i < table.size(); ++i) table[i] = int32_t(i) + 1;
  std::vector<int32_t> row_slot(rows), query_start(rows + 1), seq_len(rows, int32_t(context));
  for (int64_t r = 0; r < rows; ++r) {
    row_slot[r] = int32_t(r);
    query_start[r + 1] = int32_t((r + 1) * queries);
  }
  PagedAttentionArgs a;
  a.out = TensorView::Dense(out.data(), dtype, {tokens, kHeads, kHeadDim});
  a.q = TensorView::Dense(q.data(), dtype, {tokens, kHeads, kHeadDim});
  a.cache = TensorView::Dense(cache.data(), cache_dtype,
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
    // Read elements, whatever their size: caches of fewer bits then show what converting costs.
    const auto rate = [&](DType dtype, DType cache) {
      const double elements = double(kRows * context * kKvHeads * kHeadDim) * 2;
      return elements / AttentionSeconds(dtype, cache, kRows, 1, context) / 1e9;
    };
    const double decode = rate(DType::kF32, DType::kF32) * sizeof(float);
    const double prefill = AttentionSeconds(DType::kF32, DType::kF32, 1, context, context);
    // Two products of a multiply and an add for each visible pair of positions.
    const double pairs = double(context) * double(context + 1) / 2;
    const double flops = pairs * double(kHeads * kHeadDim) * 4;
    KeepBest(&measures, {{"attention_decode", decode, "GB/s"},
                         {"attention_decode_bf16", rate(DType::kBF16, DType::kBF16), "G/s"},
                         {"attention_decode_fp8", rate(DType::kBF16, DType::kF8E4M3), "G/s"},
                         {"attention_prefill", flops / prefill / 1e9, "GFLOP/s"}});
  }
  return measures;
}

}  // namespace octavo::tools
