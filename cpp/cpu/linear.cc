#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "octavo/ops.h"

namespace octavo::cpu {
namespace {

// Weights of one task. Some ten microseconds of memory traffic: large enough to be worth handing
// out, small enough that a thread which lost its core for a while holds nobody up.
constexpr int64_t kTaskBytes = 128 * 1024;
constexpr int64_t kTaskRowStep = 4;  // rows of the weight that the kernel takes together

}  // namespace

Status Linear(const LinearArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const Kernels& k = ActiveKernels();
  LinearRowsArgs rows;
  rows.dtype = a.x.dtype;
  rows.out = a.out.data;
  rows.out_stride = a.out.stride[0];
  rows.x = a.x.data;
  rows.x_stride = a.x.stride[0];
  rows.weight = a.weight.data;
  rows.weight_stride = a.weight.stride[0];
  rows.bias = a.bias.has_value() ? a.bias->data : nullptr;
  rows.inputs = a.x.shape[0];
  rows.columns = a.x.shape[1];
  const int64_t n = a.weight.shape[0];
  const int64_t row_bytes = std::max<int64_t>(1, rows.columns * DTypeSize(a.x.dtype));
  const int64_t steps = std::max<int64_t>(1, kTaskBytes / (row_bytes * kTaskRowStep));
  const int64_t per_task = steps * kTaskRowStep;
  const int64_t tasks = (n + per_task - 1) / per_task;
  const auto task = [&](int64_t i) {
    k.linear_rows(rows, i * per_task, std::min(n, (i + 1) * per_task));
  };
  if (tasks <= 1 || rows.inputs == 0) {
    if (tasks == 1) task(0);
    return Status::Ok();
  }
  ParallelFor(tasks, task);
  return Status::Ok();
}

}  // namespace octavo::cpu
