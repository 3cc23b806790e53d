#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "octavo/ops.h"

namespace octavo::cpu {

Status Rope(const RopeArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  const Kernels& k = ActiveKernels();
  const int64_t rotary = a.cos_sin.shape[1];
  const int64_t elements = (a.q.shape[1] + a.k.shape[1]) * rotary;
  if (elements == 0) return Status::Ok();
  const int32_t* position = a.position.ptr<int32_t>();
  ParallelRanges(a.q.shape[0], GrainOfRows(elements), NumThreads(),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     const float* cos = a.cos_sin.ptr<float>() + position[i] * a.cos_sin.stride[0];
                     const float* sin = cos + rotary / 2;
                     for (const TensorView* x : {&a.q, &a.k}) {
                       if (x->shape[1] == 0) continue;
                       k.rope(x->dtype, RowOf(*x, i), x->shape[1], x->stride[1], cos, sin,
                              rotary / 2, a.interleaved);
                     }
                   }
                 });
  return Status::Ok();
}

}  // namespace octavo::cpu
