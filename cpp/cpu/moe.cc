// Routing, grouping and combining of a mixture of experts: passes over a few numbers a token, so
// simple loops. The grouped product is grouped_linear.cc.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/scratch.h"
#include "octavo/ops.h"
#include "octavo/ops_moe.h"

namespace octavo::cpu {
namespace {

// Keeps the k largest in ids and values, falling; equals stay in the order of their ids.
void KeepLargest(const float* logits, int64_t experts, int64_t k, int32_t* ids, float* values) {
  int64_t kept = 0;
  for (int64_t e = 0; e < experts; ++e) {
    if (kept == k && !(logits[e] > values[k - 1])) continue;
    int64_t at = kept < k ? kept++ : k - 1;
    for (; at > 0 && logits[e] > values[at - 1]; --at) {
      values[at] = values[at - 1];
      ids[at] = ids[at - 1];
    }
    values[at] = logits[e];
    ids[at] = static_cast<int32_t>(e);
  }
}

// Logits of the k kept to their weights, in place.
void Weigh(const MoeRouteArgs& a, const float* logits, int64_t experts, int64_t k, float* weights) {
  const float largest = weights[0];
  float sum = 0.0f;
  for (int64_t j = 0; j < k; ++j) {
    weights[j] = a.sigmoid ? 1.0f / (1.0f + std::exp(-weights[j])) : std::exp(weights[j] - largest);
    sum += weights[j];
  }
  if (!a.renormalize && a.sigmoid) return;
  if (!a.renormalize) {
    sum = 0.0f;
    for (int64_t e = 0; e < experts; ++e) sum += std::exp(logits[e] - largest);
  }
  for (int64_t j = 0; j < k; ++j) weights[j] /= sum;
}

// The score of every expert.
void ScoreAll(const MoeRouteArgs& a, const float* logits, int64_t experts, float* scores) {
  const float largest = *std::max_element(logits, logits + experts);
  float sum = 0.0f;
  for (int64_t e = 0; e < experts; ++e) {
    scores[e] = a.sigmoid ? 1.0f / (1.0f + std::exp(-logits[e])) : std::exp(logits[e] - largest);
    sum += scores[e];
  }
  for (int64_t e = 0; e < experts && !a.sigmoid; ++e) scores[e] /= sum;
}

// Leaves the experts of the best groups in `choice`, -inf for the others. `sums` holds two floats
// and `ids` two integers a group, then as many of each as a group has experts.
void KeepGroups(const MoeRouteArgs& a, int64_t experts, float* choice, float* sums, int32_t* ids) {
  const int64_t size = experts / a.groups;
  float* best = sums + 2 * a.groups;
  for (int64_t g = 0; g < a.groups; ++g) {
    KeepLargest(choice + g * size, size, a.group_best, ids + 2 * a.groups, best);
    sums[g] = 0.0f;
    for (int64_t j = 0; j < a.group_best; ++j) sums[g] += best[j];
  }
  KeepLargest(sums, a.groups, a.top_groups, ids, sums + a.groups);
  std::sort(ids, ids + a.top_groups);
  int64_t kept = 0;
  for (int64_t g = 0; g < a.groups; ++g) {
    if (kept < a.top_groups && ids[kept] == g) {
      ++kept;
    } else {
      std::fill(choice + g * size, choice + (g + 1) * size,
                -std::numeric_limits<float>::infinity());
    }
  }
}

// The choice by biased scores, within groups.
void ChooseLimited(const MoeRouteArgs& a, const float* logits, int64_t experts, int64_t k,
                   int32_t* ids, float* weights) {
  constexpr int64_t kTables = 8;  // of up to `experts` entries: scores, choice, sums and ids
  static_assert(sizeof(float) == sizeof(int32_t));
  float* scores = static_cast<float*>(
      ThreadScratch(ScratchUse::kTask, kTables * experts * static_cast<int64_t>(sizeof(float))));
  float* choice = scores + experts;
  ScoreAll(a, logits, experts, scores);
  for (int64_t e = 0; e < experts; ++e) {
    choice[e] = a.bias.has_value() ? scores[e] + a.bias->ptr<float>()[e] : scores[e];
  }
  if (a.groups > 1) {
    KeepGroups(a, experts, choice, choice + experts,
               reinterpret_cast<int32_t*>(scores + 5 * experts));
  }
  KeepLargest(choice, experts, k, ids, weights);
  // What DeepSeek adds where all chosen sigmoids are zero.
  constexpr float kLeastSum = 1e-20f;
  float sum = a.renormalize ? kLeastSum : 1.0f;
  for (int64_t j = 0; j < k; ++j) {
    weights[j] = scores[ids[j]];
    if (a.renormalize) sum += weights[j];
  }
  for (int64_t j = 0; j < k; ++j) weights[j] /= sum;
}

void RouteRow(const MoeRouteArgs& a, int64_t n) {
  const int64_t experts = a.logits.shape[1], k = a.ids.shape[1];
  const float* logits = static_cast<const float*>(RowOf(a.logits, n));
  int32_t* ids = static_cast<int32_t*>(RowOf(a.ids, n));
  float* weights = static_cast<float*>(RowOf(a.weights, n));
  if (std::any_of(logits, logits + experts, [](float x) { return std::isnan(x); })) {
    for (int64_t j = 0; j < k; ++j) ids[j] = static_cast<int32_t>(j);
    std::fill(weights, weights + k, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  if (a.bias.has_value() || a.groups > 1) {
    ChooseLimited(a, logits, experts, k, ids, weights);
  } else {
    KeepLargest(logits, experts, k, ids, weights);
    Weigh(a, logits, experts, k, weights);
  }
  for (int64_t j = 0; j < k && a.scale != 1.0f; ++j) weights[j] *= a.scale;
}

}  // namespace

Status MoeRoute(const MoeRouteArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  constexpr int64_t kCostOfExp = 8;  // in elements copied
  ParallelRanges(a.logits.shape[0], GrainOfRows(a.logits.shape[1] * kCostOfExp), NumThreads(),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t n = begin; n < end; ++n) RouteRow(a, n);
                 });
  return Status::Ok();
}

Status MoeGroup(const MoeGroupArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  const int64_t k = a.ids.shape[1], experts = a.start.shape[0] - 1;
  int32_t* start = a.start.ptr<int32_t>();
  int32_t* token = a.token.ptr<int32_t>();
  // A counting sort: start[e + 1] counts, then sums, and `next` is where expert e goes on.
  int32_t* next = static_cast<int32_t*>(
      ThreadScratch(ScratchUse::kCall, experts * static_cast<int64_t>(sizeof(int32_t))));
  std::fill(start, start + experts + 1, 0);
  for (int64_t n = 0; n < a.ids.shape[0]; ++n) {
    const int32_t* ids = static_cast<const int32_t*>(RowOf(a.ids, n));
    for (int64_t j = 0; j < k; ++j) ++start[ids[j] + 1];
  }
  for (int64_t e = 0; e < experts; ++e) {
    next[e] = start[e];
    start[e + 1] += start[e];
  }
  for (int64_t n = 0; n < a.ids.shape[0]; ++n) {
    const int32_t* ids = static_cast<const int32_t*>(RowOf(a.ids, n));
    int32_t* place = static_cast<int32_t*>(RowOf(a.place, n));
    for (int64_t j = 0; j < k; ++j) {
      place[j] = next[ids[j]]++;
      token[place[j]] = static_cast<int32_t>(n);
    }
  }
  return Status::Ok();
}

Status MoeCombine(const MoeCombineArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  const Kernels& kernels = ActiveKernels();
  const int64_t h = a.out.shape[1], k = a.place.shape[1];
  ParallelRanges(a.out.shape[0], GrainOfRows(h * k), NumThreads(), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      kernels.weighted_sum(a.out.dtype, RowOf(a.out, n), a.rows.data, a.rows.stride[0],
                           static_cast<const int32_t*>(RowOf(a.place, n)),
                           static_cast<const float*>(RowOf(a.weights, n)), k, h);
    }
  });
  return Status::Ok();
}

Status ClampedSwiglu(const ClampedSwigluArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const Kernels& kernels = ActiveKernels();
  const int64_t n = a.out.shape[1];
  const int64_t up = n * DTypeSize(a.out.dtype);
  ParallelRanges(a.out.shape[0], GrainOfRows(2 * n), NumThreads(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const char* gate = static_cast<const char*>(RowOf(a.gate_up, i));
      kernels.clamped_swiglu(a.out.dtype, RowOf(a.out, i), gate, gate + up, n, a.alpha, a.limit);
    }
  });
  return Status::Ok();
}

}  // namespace octavo::cpu
