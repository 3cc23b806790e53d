#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "octavo/ops.h"

namespace octavo::cpu {

Status RmsNorm(const RmsNormArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const Kernels& k = ActiveKernels();
  const int64_t heads = a.x.rank == 3 ? a.x.shape[1] : 1;
  const int64_t n = a.x.shape[a.x.rank - 1];
  ParallelRanges(
      a.x.shape[0] * heads, GrainOfRows(n), NumThreads(), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          k.rms_norm(a.x.dtype, RowOf(a.out, i / heads, i % heads),
                     RowOf(a.x, i / heads, i % heads), a.weight.data, n, a.eps, a.weight_offset);
        }
      });
  return Status::Ok();
}

Status AddRmsNorm(const AddRmsNormArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const Kernels& k = ActiveKernels();
  const int64_t n = a.x.shape[1];
  ParallelRanges(a.x.shape[0], GrainOfRows(n), NumThreads(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      k.add_rms_norm(a.x.dtype, RowOf(a.out, i), RowOf(a.x, i), RowOf(a.residual, i), a.weight.data,
                     n, a.eps, a.weight_offset);
    }
  });
  return Status::Ok();
}

}  // namespace octavo::cpu
