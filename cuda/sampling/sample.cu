// sample: edits, cuts and draws one token from each row of logits, without sorting the row.
//
// Shapes: logits [S, V] float32, V <= 2^20; the rest [S]. Grid: a CTA a row, or a cluster where
// rows are few. Passes over a row: one for mask and maximum (all that a greedy row needs), one that
// counts weights in bins, one that gathers the few tokens above the bin in which top_k or top_p
// ends; those are sorted, cut and drawn from in shared memory. Rows without a cut, or whose cut
// keeps more than 2048 tokens, are drawn from in token order by sums of chunks. Bound by bytes: 4 *
// S * V a pass (at most 50 MB of rows come from L2 in the later ones). Sources: SampleArgs; radix
// select.
#include "base/ops_check.h"
#include "base/uniform.h"
#include "common/launch.h"
#include "common/rows.h"
#include "octavo/cuda_ops.h"
#include "sampling/cut.cuh"
#include "sampling/edits.cuh"
#include "sampling/shape.h"

namespace octavo::cuda {
namespace {

constexpr float kGreedyTemperature = 1e-5f;

struct SampleParams {
  int32_t* token;
  float* logits;
  int64_t stride;  // elements
  int32_t vocab;
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const float* presence;
  const float* frequency;
  const float* repetition;
  const uint64_t* seed;
  const int64_t* sample_index;
  const int32_t* bias_start;
  const int32_t* bias_token;
  const float* bias_value;
  const uint64_t* history;
  const int32_t* history_len;
  const int32_t* prompt_len;
  const uint64_t* mask;
};

// Shared memory. Counting occurrences is over before anything else begins.
struct SearchScratch {
  BinScratch bins;
  PickScratch pick;
  unsigned long long gathered[kGathered];
};
union SampleScratch {
  SearchScratch search;
  uint32_t counts[kCountTile];
};

struct RowLimits {
  float temperature, top_p, min_p;
  int top_k;
};

__device__ __forceinline__ bool Finite(float x) { return fabsf(x) < INFINITY; }

__device__ __forceinline__ bool InRange(const RowLimits& r, const RowEdits& e) {
  return r.temperature >= 0.0f && Finite(r.temperature) && r.top_p >= 0.0f && r.min_p >= 0.0f &&
         r.min_p <= 1.0f && Finite(e.presence) && Finite(e.frequency) && e.repetition > 0.0f &&
         Finite(e.repetition);
}

// Weights relative to the largest logit, whose weight is 1; 0 below min_p.
struct Weights {
  float largest, scale, min_p;

  __device__ __forceinline__ uint32_t Key(float x) const {
    const float w = x == largest ? 1.0f : expf((x - largest) * scale);
    return w >= min_p ? __float_as_uint(w) : 0u;
  }
};

// Draws among gathered[0, n), of which the first `top_k` in order and then the part `top_p` of the
// mass `total` (their own where it is negative) stay. Where they do not make up that part, -1 if
// they are not all there is, else all of them.
__device__ __noinline__ int DrawGathered(int n, int top_k, float top_p, double total,
                                         bool all_there, double u, SearchScratch* s) {
  SortFalling(s->gathered, n);
  n = Min(n, top_k);
  const int first = 2 * static_cast<int>(threadIdx.x);
  const auto weight_at = [&](int i) {
    if (i >= n) return 0.0;
    return static_cast<double>(__uint_as_float(static_cast<uint32_t>(s->gathered[i] >> 32)));
  };
  CountAndMass all;
  double a = weight_at(first), b = weight_at(first + 1);
  double before = SumBefore({0, a + b}, &s->pick.scan, &all).mass;
  if (threadIdx.x == 0) s->pick.chunk = n;
  __syncthreads();
  if (top_p < 1.0f) {
    const double goal = static_cast<double>(top_p) * (total < 0.0 ? all.mass : total);
    if (!all_there && goal > all.mass) return -1;
    if (first < n && before + a >= goal) atomicMin(&s->pick.chunk, first + 1);
    if (first + 1 < n && before + (a + b) >= goal) atomicMin(&s->pick.chunk, first + 2);
    __syncthreads();
  }
  n = s->pick.chunk;
  __syncthreads();
  // In token order: words of ~index and key, rising in the index.
  for (int i = threadIdx.x; i < n; i += kRowThreads) {
    s->gathered[i] = s->gathered[i] << 32 | s->gathered[i] >> 32;
  }
  __syncthreads();
  SortFalling(s->gathered, n);
  const auto weight_of = [&](int i) {
    if (i >= n) return 0.0;
    return static_cast<double>(__uint_as_float(static_cast<uint32_t>(s->gathered[i])));
  };
  a = weight_of(first);
  b = weight_of(first + 1);
  before = SumBefore({0, a + b}, &s->pick.scan, &all).mass;
  if (threadIdx.x == 0) s->pick.chunk = n - 1;
  __syncthreads();
  const double goal = u * all.mass;
  if (first < n && before + a > goal) atomicMin(&s->pick.chunk, first);
  if (first + 1 < n && before + (a + b) > goal) atomicMin(&s->pick.chunk, first + 1);
  __syncthreads();
  return static_cast<int>(~static_cast<uint32_t>(s->gathered[s->pick.chunk] >> 32));
}

// Draws among what Gather left: the first CTA does, and tells the others.
__device__ __noinline__ int DrawByFirst(const RowTeam& team, int n, int top_k, float top_p,
                                        double total, bool all_there, double u, SearchScratch* s) {
  if (team.rank == 0) {
    const int token = DrawGathered(n, top_k, top_p, total, all_there, u, s);
    __syncthreads();
    if (threadIdx.x == 0) s->pick.picked = token;
  }
  team.Sync();
  const int token = *team.Of(&s->pick.picked, 0);
  team.Sync();  // the first CTA neither writes there again nor ends before all have read
  return token;
}

template <int kWidth>
__device__ int DrawRow(const RowTeam& team, const float* x, int vocab, const RowLimits& r,
                       float largest, double u, SearchScratch* s) {
  const Weights weights{largest, 1.0f / r.temperature, r.min_p};
  Cut by_count, by_mass;
  const auto key_of = [&](int i) {
    const uint32_t key = weights.Key(x[i]);
    return by_count.Keeps(key, i) && by_mass.Keeps(key, i) ? key : 0u;
  };
  const auto for_each = [&](auto f) {
    ForEach<kWidth, 8>(team, x, vocab, [&](int i, float value) {
      const uint32_t key = weights.Key(value);
      f(i, by_count.Keeps(key, i) ? key : 0u);
    });
  };
  const bool cut_mass = r.top_p < 1.0f;
  if (r.top_k > 0 && r.top_k < vocab) {
    const Cut cut = FindCut(team, for_each, key_of, vocab, r.top_k, -1.0, &s->bins, &s->pick);
    if (!cut.exact) {
      const int n = Gather(team, for_each, cut.low, s->gathered, &s->pick.last);
      return DrawByFirst(team, n, r.top_k, r.top_p, -1.0, true, u, s);
    }
    by_count = cut;
  }
  if (cut_mass && (r.top_k <= 0 || r.top_k >= vocab)) {
    // Usually the likeliest two thousand hold the part that is wanted, and one counter a bin is
    // enough to find them.
    const auto weight = [&](int i) {
      return static_cast<double>(__uint_as_float(weights.Key(x[i])));
    };
    const double total = SumOfRow(team, vocab, weight, &s->pick);
    const uint32_t low =
        LowestSorted(team, for_each, static_cast<double>(r.top_p) * total, &s->bins);
    if (low > 0) {
      const int n = Gather(team, for_each, low, s->gathered, &s->pick.last);
      const int token = DrawByFirst(team, n, kGathered, r.top_p, total, false, u, s);
      if (token >= 0) return token;
    }
  }
  if (cut_mass) {
    const Cut cut =
        FindCut(team, for_each, key_of, vocab, 1, static_cast<double>(r.top_p), &s->bins, &s->pick);
    if (!cut.exact) {
      const int n = Gather(team, for_each, cut.low, s->gathered, &s->pick.last);
      return DrawByFirst(team, n, kGathered, r.top_p, cut.total, true, u, s);
    }
    by_mass = cut;
  }
  const auto weight = [&](int i) { return static_cast<double>(__uint_as_float(key_of(i))); };
  return PickInOrder(team, vocab, weight, [&](double total) { return u * total; }, &s->pick);
}

template <int kWidth>
__global__ void __launch_bounds__(kRowThreads, 1)
    SampleKernel(const __grid_constant__ SampleParams p) {
  __shared__ LargestScratch largest_scratch;
  SampleScratch* const scratch = reinterpret_cast<SampleScratch*>(DynamicShared());
  GridDependencyWait();
  GridDependencyLaunch();
  const RowTeam team;
  const int64_t s = blockIdx.x / team.size;
  float* const x = p.logits + s * p.stride;
  const RowLimits limits{p.temperature[s], p.top_p[s], p.min_p[s], p.top_k[s]};
  const RowEdits edits{p.bias_token,
                       p.bias_value,
                       p.bias_start[s],
                       p.bias_start[s + 1],
                       reinterpret_cast<const int32_t*>(p.history[s]),
                       p.history_len[s],
                       p.prompt_len[s],
                       p.presence[s],
                       p.frequency[s],
                       p.repetition[s]};
  if (!InRange(limits, edits)) {
    if (threadIdx.x == 0 && team.rank == 0) p.token[s] = -1;
    return;
  }
  if (team.rank == 0) {
    ApplyBias(x, p.vocab, edits);
    ApplyPenalties(x, p.vocab, edits, scratch->counts);
  }
  team.Sync();
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(p.mask[s]);
  unsigned long long key = 0;
  bool nan = false;
  ForEach<kWidth, 8>(team, x, p.vocab, [&](int i, float value) {
    const float kept = Masked(value, i, words);
    if (words != nullptr && kept != value) x[i] = kept;
    nan = nan || isnan(kept);
    const unsigned long long mine = LargestKey(kept, i);
    key = mine > key ? mine : key;
  });
  const Largest largest = FindLargest(team, x, key, nan, &largest_scratch);
  int token = largest.id;
  if (largest.nan || largest.value == -INFINITY) {
    token = -1;
  } else if (limits.temperature >= kGreedyTemperature) {
    const double u = Uniform(p.seed[s], static_cast<uint64_t>(p.sample_index[s]));
    token = DrawRow<kWidth>(team, x, p.vocab, limits, largest.value, u, &scratch->search);
  }
  if (threadIdx.x == 0 && team.rank == 0) p.token[s] = token;
  team.Sync();  // nobody's shared memory ends while another may look at it
}

}  // namespace

Status Sample(const SampleArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  if (a.logits.shape[0] == 0) return Status::Ok();
  if (a.logits.shape[1] > kMaxVocab) {
    return InvalidOp("sample", "logits has a vocabulary of " + std::to_string(a.logits.shape[1]) +
                                   ", need at most 1048576 on CUDA");
  }
  SampleParams p{};
  p.token = a.token.ptr<int32_t>();
  p.logits = a.logits.ptr<float>();
  p.stride = a.logits.stride[0];
  p.vocab = static_cast<int32_t>(a.logits.shape[1]);
  p.temperature = a.temperature.ptr<float>();
  p.top_k = a.top_k.ptr<int32_t>();
  p.top_p = a.top_p.ptr<float>();
  p.min_p = a.min_p.ptr<float>();
  p.presence = a.presence.ptr<float>();
  p.frequency = a.frequency.ptr<float>();
  p.repetition = a.repetition.ptr<float>();
  p.seed = a.seed.ptr<uint64_t>();
  p.sample_index = a.sample_index.ptr<int64_t>();
  p.bias_start = a.bias_start.ptr<int32_t>();
  p.bias_token = a.bias_token.ptr<int32_t>();
  p.bias_value = a.bias_value.ptr<float>();
  p.history = a.history.ptr<uint64_t>();
  p.history_len = a.history_len.ptr<int32_t>();
  p.prompt_len = a.prompt_len.ptr<int32_t>();
  p.mask = a.mask.ptr<uint64_t>();
  LaunchShape shape;
  OCTAVO_RETURN_IF_ERROR(ShapeRowTeams(a.logits.shape[0], &shape));
  shape.shared_bytes = sizeof(SampleScratch);
  shape.stream = stream;
  return WideRows(a.logits, 0) ? LaunchDependent(SampleKernel<4>, shape, p)
                               : LaunchDependent(SampleKernel<1>, shape, p);
}

}  // namespace octavo::cuda
