#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/scratch.h"
#include "octavo/ops.h"

namespace octavo::cpu {

namespace {

// A row of logits in float32: itself, or a copy in memory of the task.
const float* WideRow(const ArgmaxArgs& a, const Kernels& k, int64_t s) {
  const void* x = RowOf(a.logits, s);
  if (a.logits.dtype == DType::kF32) return static_cast<const float*>(x);
  const int64_t n = a.logits.shape[1];
  auto* wide = static_cast<float*>(
      ThreadScratch(ScratchUse::kTask, n * static_cast<int64_t>(sizeof(float))));
  k.widen(a.logits.dtype, wide, x, n);
  return wide;
}

}  // namespace

Status Argmax(const ArgmaxArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const Kernels& k = ActiveKernels();
  const int64_t vocab = a.logits.shape[1];
  ParallelRanges(
      a.logits.shape[0], GrainOfRows(vocab), NumThreads(), [&](int64_t begin, int64_t end) {
        for (int64_t s = begin; s < end; ++s) {
          const float* x = WideRow(a, k, s);
          bool nan = false;
          const float largest = k.largest(x, vocab, &nan);
          a.token.ptr<int32_t>()[s] = nan ? -1 : static_cast<int32_t>(k.find(x, vocab, largest));
        }
      });
  return Status::Ok();
}

}  // namespace octavo::cpu
