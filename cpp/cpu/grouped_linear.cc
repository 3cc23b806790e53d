// The product of each expert with its own rows. The work of decoding is reading the weights of the
// experts that somebody wants, so the tasks are runs of weight rows of all of them, in one loop:
// eight experts with a row each keep every thread busy, where eight products one after another
// would each end in a wait.
#include <algorithm>

#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/scratch.h"
#include "octavo/ops_moe.h"

namespace octavo::cpu {
namespace {

constexpr int64_t kTaskBytes = 128 * 1024;  // of the weight, as in linear.cc
constexpr int64_t kTaskRowStep = 4;         // rows of the weight that the kernel takes together

}  // namespace

Status GroupedLinear(const GroupedLinearArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  const Kernels& kernels = ActiveKernels();
  const int32_t* start = a.start.ptr<int32_t>();
  const int64_t experts = a.start.shape[0] - 1, m = a.weight.shape[1];
  const int64_t size = DTypeSize(a.x.dtype);
  int32_t* wanted = static_cast<int32_t*>(
      ThreadScratch(ScratchUse::kPlan, experts * static_cast<int64_t>(sizeof(int32_t))));
  int64_t count = 0;
  for (int64_t e = 0; e < experts; ++e) {
    if (start[e] < start[e + 1]) wanted[count++] = static_cast<int32_t>(e);
  }
  const int64_t row_bytes = std::max<int64_t>(1, a.x.shape[1] * size);
  const int64_t per_task =
      std::max<int64_t>(1, kTaskBytes / (row_bytes * kTaskRowStep)) * kTaskRowStep;
  const int64_t tasks = (m + per_task - 1) / per_task;
  if (tasks == 0) return Status::Ok();
  ParallelFor(count * tasks, [&](int64_t i) {
    const int64_t e = wanted[i / tasks], first = i % tasks * per_task;
    LinearRowsArgs rows;
    rows.dtype = a.x.dtype;
    rows.out = RowOf(a.out, start[e]);
    rows.out_stride = a.out.stride[0];
    rows.x = RowOf(a.x, start[e]);
    rows.x_stride = a.x.stride[0];
    rows.weight = RowOf(a.weight, e);
    rows.weight_stride = a.weight.stride[1];
    rows.bias = a.bias.has_value() ? RowOf(*a.bias, e) : nullptr;
    rows.inputs = start[e + 1] - start[e];
    rows.columns = a.x.shape[1];
    kernels.linear_rows(rows, first, std::min(m, first + per_task));
  });
  return Status::Ok();
}

}  // namespace octavo::cpu
