// logprobs: log-probability and rank of the given token, and the k likeliest tokens, of each row.
//
// Shapes: logits [S, V] float32, V <= 2^20; ids, values [S, k + 1], k <= 1024; rank, token [S].
// Grid: a CTA a row. Passes: the maximum; the sum of exponentials and the rank; for k > 0 those of
// FindCut and one that gathers. Bound by bytes: 4 * S * V a pass.
#include "base/ops_check.h"
#include "common/launch.h"
#include "common/rows.h"
#include "octavo/cuda_ops.h"
#include "sampling/cut.cuh"

namespace octavo::cuda {
namespace {

constexpr int64_t kMaxTop = 1024;
static_assert(kMaxTop <= kGathered);

struct LogprobParams {
  int32_t* ids;
  float* values;
  int32_t* rank;
  const float* logits;
  const int32_t* token;
  int64_t ids_stride, values_stride, logits_stride;  // elements
  int32_t vocab;
  int32_t k;
};

struct LogprobScratch {
  BinScratch bins;
  PickScratch pick;
  unsigned long long gathered[kGathered];
  LargestScratch largest;
};

// 0 for what never counts among the likeliest: NaN and -inf.
__device__ __forceinline__ uint32_t TopKey(float x) { return x > -INFINITY ? OrderedBits(x) : 0u; }

// Leaves the ids of the k likeliest in `gathered`, sorted; returns how many there are.
template <int kWidth>
__device__ __noinline__ int FindTop(const RowTeam team, const float* x, int vocab, int k,
                                    LogprobScratch* s) {
  Cut kept;
  const auto for_each = [&](auto f) {
    ForEach<kWidth, kAhead<kWidth>>(team, x, vocab, [&](int i, float value) {
      const uint32_t key = TopKey(value);
      f(i, kept.Keeps(key, i) ? key : 0u);
    });
  };
  const auto key_of = [&](int, float value) { return TopKey(value); };
  const Cut cut = FindCut<kWidth>(team, x, for_each, key_of, vocab, k, -1.0, &s->bins, &s->pick);
  if (cut.exact) kept = cut;
  const int n = Gather(team, for_each, cut.low, s->gathered, &s->pick.last);
  SortFalling(s->gathered, n);
  return Min(n, k);
}

template <int kWidth>
__global__ void __launch_bounds__(kRowThreads, 1)
    LogprobKernel(const __grid_constant__ LogprobParams p) {
  LogprobScratch* const scratch = reinterpret_cast<LogprobScratch*>(DynamicShared());
  GridDependencyWait();
  GridDependencyLaunch();
  const RowTeam team;  // of one: logprobs are asked for rarely
  const int64_t s = blockIdx.x;
  const float* const x = p.logits + s * p.logits_stride;
  int32_t* const ids = p.ids + s * p.ids_stride;
  float* const values = p.values + s * p.values_stride;
  for (int i = threadIdx.x; i <= p.k; i += kRowThreads) {
    ids[i] = -1;
    values[i] = -INFINITY;
  }
  const int32_t token = p.token[s];
  if (token < 0 || token >= p.vocab) {
    if (threadIdx.x == 0) p.rank[s] = 0;
    return;
  }
  LargestOfThread mine;
  ForEach<kWidth, kAhead<kWidth>>(team, x, p.vocab,
                                  [&](int i, float value) { mine.Take(i, value); });
  const float largest = FindLargest(team, x, mine, &scratch->largest).value;
  const float chosen = x[token];
  float sum = 0.0f;
  int larger = 0;
  ForEach<kWidth, kAhead<kWidth>>(team, x, p.vocab, [&](int, float value) {
    sum += value == largest ? 1.0f : expf(value - largest);
    larger += value > chosen ? 1 : 0;
  });
  CountAndMass total;
  SumBefore({larger, static_cast<double>(sum)}, &scratch->pick.scan, &total);
  const double log_sum = static_cast<double>(largest) + log(total.mass);
  if (threadIdx.x == 0) {
    ids[0] = token;
    values[0] = static_cast<float>(static_cast<double>(chosen) - log_sum);
    p.rank[s] = 1 + total.count;
  }
  if (p.k == 0) return;
  const int n = FindTop<kWidth>(team, x, p.vocab, p.k, scratch);
  for (int i = threadIdx.x; i < n; i += kRowThreads) {
    const auto id = static_cast<int32_t>(~static_cast<uint32_t>(scratch->gathered[i]));
    ids[i + 1] = id;
    values[i + 1] = static_cast<float>(static_cast<double>(x[id]) - log_sum);
  }
}

}  // namespace

Status Logprobs(const LogprobsArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  if (a.logits.shape[0] == 0) return Status::Ok();
  if (a.logits.shape[1] > kMaxVocab || a.k > kMaxTop) {
    return InvalidOp("logprobs", "the vocabulary is " + std::to_string(a.logits.shape[1]) +
                                     " and k is " + std::to_string(a.k) +
                                     ", need at most 1048576 and 1024 on CUDA");
  }
  const LogprobParams p{
      a.ids.ptr<int32_t>(),     a.values.ptr<float>(),  a.rank.ptr<int32_t>(),
      a.logits.ptr<float>(),    a.token.ptr<int32_t>(), a.ids.stride[0],
      a.values.stride[0],       a.logits.stride[0],     static_cast<int32_t>(a.logits.shape[1]),
      static_cast<int32_t>(a.k)};
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(a.logits.shape[0]);
  shape.threads = kRowThreads;
  shape.shared_bytes = sizeof(LogprobScratch);
  shape.stream = stream;
  return WideRows(a.logits, 0) ? LaunchDependent(LogprobKernel<4>, shape, p)
                               : LaunchDependent(LogprobKernel<1>, shape, p);
}

}  // namespace octavo::cuda
