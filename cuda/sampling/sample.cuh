// sample: edits, cuts and draws one token from each row of logits, without sorting the row.
//
// Shapes: logits [S, V], V <= 2^20; the rest [S]. Rows in 16 bits are read as they are, and by way
// of a float32 row of scratch where there is something to edit. Grid: a CTA a row, or a cluster
// where rows are few. Passes over a row: one for mask and maximum (all that a greedy row needs);
// for top_p one that sums the weights; one that gathers the few tokens that a top_k or top_p of
// most rows ends among, which the threads' own maxima tell. Those are sorted, cut and drawn from in
// shared memory. Where they are too many or too few, another pass counts weights in bins before
// the right ones are gathered. Rows whose cut keeps more than 2048 tokens are drawn from in token
// order by sums of chunks. Rows without top_k and top_p take one pass of their own (draw.cuh), and
// with min_p another over the chunks that it keeps something of. Bound by bytes of the first pass
// (the later ones find up to 50 MB of rows in L2) and, with a cut, by instructions. Sources:
// SampleArgs; radix select.
#pragma once

#include "base/uniform.h"
#include "sampling/cut.cuh"
#include "sampling/draw.cuh"
#include "sampling/edits.cuh"
#include "sampling/sample.h"

namespace octavo::cuda {

inline constexpr float kGreedyTemperature = 1e-5f;

// Shared memory. Counting occurrences is over before anything else begins.
struct SearchScratch {
  BinScratch bins;
  PickScratch pick;
  unsigned long long gathered[kGathered];
};
union SampleScratch {
  SearchScratch search;
  DrawScratch draw;
  uint32_t counts[kCountTile];
};

// Of the threads' maxima, how many bound the likeliest tokens: a quarter of a CTA's. The tokens
// that reach the 256th of 1024 maxima are some 300 where nothing is known of their order.
inline constexpr int kFewMaxima = kRowThreads / 4;

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

  // A logit that those of a key are not below, with a margin far above what rounding does. NaN
  // where there is none.
  __device__ __forceinline__ float LogitOf(uint32_t key) const {
    constexpr float kMargin = 1e-5f, kLongestExponent = 128.0f;
    const float below = logf(__uint_as_float(key)) / scale;
    return largest + below - kMargin * (fabsf(largest) + kLongestExponent / scale);
  }
};

// Draws among gathered[0, n), of which the first `top_k` in order and then the part `top_p` of the
// mass `total` (their own where it is negative) stay. Where they do not make up that part, -1 if
// they are not all there is, else all of them.
static __device__ __noinline__ int DrawGathered(int n, int top_k, float top_p, double total,
                                                bool all_there, double u, SearchScratch* s) {
  SortFalling(s->gathered, n);
  n = Min(n, top_k);
  const int first = kOwned * static_cast<int>(threadIdx.x);
  const auto before_own = [&](const auto& weight_at, CountAndMass* all) {
    double own = 0.0;
    for (int j = 0; j < kOwned; ++j) own += weight_at(first + j);
    return SumBefore({0, own}, &s->pick.scan, all).mass;
  };
  const auto falling = [&](int i) {
    if (i >= n) return 0.0;
    return static_cast<double>(__uint_as_float(static_cast<uint32_t>(s->gathered[i] >> 32)));
  };
  CountAndMass all;
  double running = before_own(falling, &all);
  if (threadIdx.x == 0) s->pick.chunk = n;
  __syncthreads();
  if (top_p < 1.0f) {
    const double goal = static_cast<double>(top_p) * (total < 0.0 ? all.mass : total);
    if (!all_there && goal > all.mass) return -1;
    for (int i = first; i < Min(first + kOwned, n); ++i) {
      running += falling(i);
      if (running >= goal) atomicMin(&s->pick.chunk, i + 1);
    }
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
  const auto in_order = [&](int i) {
    if (i >= n) return 0.0;
    return static_cast<double>(__uint_as_float(static_cast<uint32_t>(s->gathered[i])));
  };
  running = before_own(in_order, &all);
  if (threadIdx.x == 0) s->pick.chunk = n - 1;
  __syncthreads();
  const double goal = u * all.mass;
  for (int i = first; i < Min(first + kOwned, n); ++i) {
    running += in_order(i);
    if (running > goal) atomicMin(&s->pick.chunk, i);
  }
  __syncthreads();
  return static_cast<int>(~static_cast<uint32_t>(s->gathered[s->pick.chunk] >> 32));
}

// Draws among what Gather left: the first CTA does, and tells the others.
static __device__ __noinline__ int DrawByFirst(const RowTeam team, int n, int top_k, float top_p,
                                               double total, bool all_there, double u,
                                               SearchScratch* s) {
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

__device__ __forceinline__ bool CutsCount(const RowLimits& r, int vocab) {
  return r.top_k > 0 && r.top_k < vocab;
}

// Draws from a row with a cut.
template <int kWidth, typename T>
__device__ int DrawRow(const RowTeam& team, const T* x, int vocab, const RowLimits& r,
                       float largest, float largest_of_thread, double u, SearchScratch* s) {
  const Weights weights{largest, 1.0f / r.temperature, r.min_p};
  const bool cut_count = CutsCount(r, vocab), cut_mass = r.top_p < 1.0f;
  Cut by_count, by_mass;
  const auto key_of = [&](int i, float value) {
    const uint32_t key = weights.Key(value);
    return by_count.Keeps(key, i) && by_mass.Keeps(key, i) ? key : 0u;
  };
  const auto for_each = [&](auto f) {
    ForEach<kWidth, kAhead<kWidth>>(team, x, vocab, [&](int i, float value) {
      const uint32_t key = weights.Key(value);
      f(i, by_count.Keeps(key, i) ? key : 0u);
    });
  };
  // Gathers the likeliest, most others being told by their logits alone; returns how many.
  const auto gather_few = [&](int maxima) {
    const uint32_t low = KeyOfLargest(team, weights.Key(largest_of_thread), maxima, &s->bins);
    const float least = weights.LogitOf(low);
    const auto likely = [&](auto f) {
      ForEach<kWidth, kAhead<kWidth>>(team, x, vocab, [&](int i, float value) {
        if (!(value < least)) f(i, weights.Key(value));
      });
    };
    return Gather(team, likely, low, s->gathered, &s->pick.last);
  };
  if (cut_count) {
    if (r.top_k <= kFewMaxima) {
      const int n = gather_few(r.top_k);
      if (n <= kGathered) return DrawByFirst(team, n, r.top_k, r.top_p, -1.0, true, u, s);
    }
    const Cut cut =
        FindCut<kWidth>(team, x, for_each, key_of, vocab, r.top_k, -1.0, &s->bins, &s->pick);
    if (!cut.exact) {
      const int n = Gather(team, for_each, cut.low, s->gathered, &s->pick.last);
      return DrawByFirst(team, n, r.top_k, r.top_p, -1.0, true, u, s);
    }
    by_count = cut;
  }
  if (cut_mass && !cut_count) {
    // Usually the likeliest hundreds hold the part that is wanted, else often two thousand, and one
    // counter a bin is enough to find them.
    const auto weight = [&](int, float value) { return __uint_as_float(weights.Key(value)); };
    const double total = SumOfRow<kWidth>(team, x, vocab, weight, &s->pick);
    int n = gather_few(kFewMaxima);
    int token = n > kGathered ? -1 : DrawByFirst(team, n, kGathered, r.top_p, total, false, u, s);
    if (token >= 0) return token;
    const uint32_t low =
        LowestSorted(team, for_each, static_cast<double>(r.top_p) * total, &s->bins);
    if (low > 0) {
      n = Gather(team, for_each, low, s->gathered, &s->pick.last);
      token = DrawByFirst(team, n, kGathered, r.top_p, total, false, u, s);
      if (token >= 0) return token;
    }
  }
  if (cut_mass) {
    const Cut cut = FindCut<kWidth>(team, x, for_each, key_of, vocab, 1,
                                    static_cast<double>(r.top_p), &s->bins, &s->pick);
    if (!cut.exact) {
      const int n = Gather(team, for_each, cut.low, s->gathered, &s->pick.last);
      return DrawByFirst(team, n, kGathered, r.top_p, cut.total, true, u, s);
    }
    by_mass = cut;
  }
  const auto weight = [&](int i, float value) { return __uint_as_float(key_of(i, value)); };
  return PickInOrder<kWidth>(
      team, x, vocab, weight, [&](double total) { return u * total; }, &s->pick);
}

// Applies a mask, if there is one, in the row.
template <int kWidth>
__device__ void MaskRow(const RowTeam& team, float* x, int vocab, const uint32_t* words) {
  if (words == nullptr) return;
  ForEach<kWidth, kAhead<kWidth>>(team, x, vocab, [&](int i, float value) {
    const float kept = Masked(value, i, words);
    if (kept != value) x[i] = kept;
  });
  team.Sync();
}

struct RowScratch {
  LargestScratch* largest;
  SampleScratch* rest;
};

// The token of a row that bias and penalties have been applied to. A mask is applied in the row,
// which then is float32.
template <int kWidth, typename T>
__device__ __forceinline__ int SampleRow(const SampleParams& p, const RowTeam& team, int64_t s,
                                         T* x, const RowLimits& limits, const uint32_t* words,
                                         const RowScratch& scratch) {
  const bool greedy = limits.temperature < kGreedyTemperature;
  if (!greedy && !CutsCount(limits, p.vocab) && limits.top_p >= 1.0f) {
    if constexpr (std::is_same_v<T, float>) MaskRow<kWidth>(team, x, p.vocab, words);
    return DrawUncut<kWidth>(team, x, p.vocab, limits.temperature, limits.min_p, p.seed[s],
                             static_cast<uint64_t>(p.sample_index[s]), &scratch.rest->draw);
  }
  LargestOfThread mine;
  ForEach<kWidth, kAheadOfLargest<kWidth>>(team, x, p.vocab, [&](int i, float value) {
    float kept = value;
    if constexpr (std::is_same_v<T, float>) {
      kept = Masked(value, i, words);
      if (words != nullptr && kept != value) x[i] = kept;
    }
    mine.Take(i, kept);
  });
  const Largest largest = FindLargest(team, x, mine, scratch.largest);
  if (largest.nan || largest.value == -INFINITY) return -1;
  if (greedy) return largest.id;
  const double u = Uniform(p.seed[s], static_cast<uint64_t>(p.sample_index[s]));
  return DrawRow<kWidth>(team, x, p.vocab, limits, largest.value, mine.value, u,
                         &scratch.rest->search);
}

// The same of a float32 row as the model left it.
template <int kWidth>
__device__ int EditAndSampleRow(const SampleParams& p, const RowTeam& team, int64_t s, float* x,
                                const RowLimits& limits, const RowEdits& edits,
                                const uint32_t* words, const RowScratch& scratch) {
  if (team.rank == 0) {
    ApplyBias(x, p.vocab, edits);
    ApplyPenalties(x, p.vocab, edits, scratch.rest->counts);
  }
  team.Sync();
  return SampleRow<kWidth>(p, team, s, x, limits, words, scratch);
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kRowThreads, 1)
    SampleKernel(const __grid_constant__ SampleParams p) {
  __shared__ LargestScratch largest_scratch;
  const RowScratch scratch{&largest_scratch, reinterpret_cast<SampleScratch*>(DynamicShared())};
  GridDependencyWait();
  GridDependencyLaunch();
  const RowTeam team;
  const int64_t s = blockIdx.x / team.size;
  T* const x = static_cast<T*>(p.logits) + s * p.stride;
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
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(p.mask[s]);
  int token;
  if constexpr (std::is_same_v<T, float>) {
    token = EditAndSampleRow<kWidth>(p, team, s, x, limits, edits, words, scratch);
  } else {
    team.Sync();  // all have begun: their shared memory is there
    if (words != nullptr || Edits(edits)) {
      float* const wide = p.scratch + s * p.scratch_stride;
      ForEach<kWidth, kAhead<kWidth>>(team, x, p.vocab,
                                      [&](int i, float value) { wide[i] = value; });
      team.Sync();
      constexpr int kWideWidth = kWidth == 1 ? 1 : kWideElements<float>;
      token = EditAndSampleRow<kWideWidth>(p, team, s, wide, limits, edits, words, scratch);
    } else {
      token = SampleRow<kWidth>(p, team, s, x, limits, nullptr, scratch);
    }
  }
  if (threadIdx.x == 0 && team.rank == 0) p.token[s] = token;
  team.Sync();  // nobody's shared memory ends while another may look at it
}

// One instantiation each, in sample_<dtype>.cu.
template <typename T>
Status LaunchSampleOf(LaunchShape shape, const SampleParams& p, bool wide) {
  shape.shared_bytes = sizeof(SampleScratch);
  return wide ? LaunchDependent(SampleKernel<T, kWideElements<T>>, shape, p)
              : LaunchDependent(SampleKernel<T, 1>, shape, p);
}

}  // namespace octavo::cuda
