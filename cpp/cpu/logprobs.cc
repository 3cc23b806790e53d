#include <algorithm>
#include <cmath>
#include <limits>

#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/scratch.h"
#include "cpu/top.h"
#include "octavo/ops.h"

namespace octavo::cpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

void LogprobsRow(const LogprobsArgs& a, const Kernels& kernels, int64_t s) {
  const int64_t vocab = a.logits.shape[1], k = a.k;
  const float* x = static_cast<const float*>(RowOf(a.logits, s));
  auto* ids = static_cast<int32_t*>(RowOf(a.ids, s));
  auto* values = static_cast<float*>(RowOf(a.values, s));
  int32_t& rank = a.rank.ptr<int32_t>()[s];
  std::fill_n(ids, k + 1, -1);
  std::fill_n(values, k + 1, -kInf);
  rank = 0;
  const int32_t token = a.token.ptr<int32_t>()[s];
  if (token < 0) return;

  bool nan = false;
  const float largest = kernels.largest(x, vocab, &nan);
  const double log_sum =
      static_cast<double>(largest) + std::log(kernels.exp_sum(x, vocab, largest));
  const auto value = [&](int32_t id) {
    return static_cast<float>(static_cast<double>(x[id]) - log_sum);
  };
  ids[0] = token;
  values[0] = value(token);
  rank = static_cast<int32_t>(1 + kernels.count_above(x, vocab, x[token]));

  auto* top = static_cast<int32_t*>(ThreadScratch(
      ScratchUse::kTask, SelectTopCapacity(k) * static_cast<int64_t>(sizeof(int32_t))));
  const int64_t n = SelectTop(kernels, x, vocab, k, top);
  std::sort(top, top + n, [x](int32_t p, int32_t q) { return x[p] != x[q] ? x[p] > x[q] : p < q; });
  for (int64_t i = 0; i < n; ++i) {
    ids[i + 1] = top[i];
    values[i + 1] = value(top[i]);
  }
}

}  // namespace

Status Logprobs(const LogprobsArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  const Kernels& k = ActiveKernels();
  const int64_t rows = a.logits.shape[0];
  ParallelRanges(rows, GrainOfRows(a.logits.shape[1] * 4), rows, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) LogprobsRow(a, k, s);
  });
  return Status::Ok();
}

}  // namespace octavo::cpu
