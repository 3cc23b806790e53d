#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/scratch.h"
#include "octavo/ops_state.h"

namespace octavo::cpu {

Status GatedRmsNorm(const GatedRmsNormArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const Kernels& k = ActiveKernels();
  const int64_t n = a.x.shape[1] / a.groups, size = DTypeSize(a.x.dtype);
  ParallelRanges(a.x.shape[0] * a.groups, GrainOfRows(n), NumThreads(),
                 [&](int64_t begin, int64_t end) {
                   const int64_t bytes = n * int64_t{sizeof(float)};
                   float* products = static_cast<float*>(ThreadScratch(ScratchUse::kTask, bytes));
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t row = i / a.groups, offset = i % a.groups * n * size;
                     const auto at = [&](const TensorView& v) {
                       return static_cast<char*>(RowOf(v, row)) + offset;
                     };
                     k.gated_norm(a.x.dtype, at(a.out), at(a.x), at(a.gate),
                                  a.weight.ptr<char>() + offset, n, a.eps, products);
                   }
                 });
  return Status::Ok();
}

}  // namespace octavo::cpu
