#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "octavo/ops.h"

namespace octavo::cpu {

Status Argmax(const ArgmaxArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const Kernels& k = ActiveKernels();
  const int64_t vocab = a.logits.shape[1];
  ParallelRanges(
      a.logits.shape[0], GrainOfRows(vocab), NumThreads(), [&](int64_t begin, int64_t end) {
        for (int64_t s = begin; s < end; ++s) {
          const float* x = static_cast<const float*>(RowOf(a.logits, s));
          bool nan = false;
          const float largest = k.largest(x, vocab, &nan);
          a.token.ptr<int32_t>()[s] = nan ? -1 : static_cast<int32_t>(k.find(x, vocab, largest));
        }
      });
  return Status::Ok();
}

}  // namespace octavo::cpu
