#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "octavo/ops_state.h"

namespace octavo::cpu {
namespace {

void* At(const TensorView& v, int64_t i, int64_t j = 0) {
  return static_cast<char*>(v.data) + (i * v.stride[0] + j * v.stride[1]) * DTypeSize(v.dtype);
}
void* Element(const TensorView& v, int64_t i) {
  return static_cast<char*>(v.data) + i * DTypeSize(v.dtype);
}

void ScanOne(const SsmScanArgs& a, const Kernels& k, int64_t row, int64_t head) {
  const int32_t first = a.query_start.ptr<int32_t>()[row];
  const int64_t group = head / (a.x.shape[1] / a.b.shape[1]);
  const int32_t source = a.source.ptr<int32_t>()[row], target = a.target.ptr<int32_t>()[row];
  ScanHead h;
  h.dtype = a.x.dtype;
  h.tokens = a.query_start.ptr<int32_t>()[row + 1] - first;
  h.head_dim = a.x.shape[2];
  h.state_size = a.b.shape[2];
  h.x = At(a.x, first, head);
  h.out = At(a.out, first, head);
  h.dt = At(a.dt, first, head);
  h.b = At(a.b, first, group);
  h.c = At(a.c, first, group);
  h.x_stride = a.x.stride[0];
  h.out_stride = a.out.stride[0];
  h.dt_stride = a.dt.stride[0];
  h.b_stride = a.b.stride[0];
  h.c_stride = a.c.stride[0];
  h.a_log = Element(a.a_log, head);
  h.dt_bias = Element(a.dt_bias, head);
  h.skip = Element(a.skip, head);
  h.before = source < 0 ? nullptr : static_cast<const float*>(At(a.state, source, head));
  h.after = static_cast<float*>(At(a.state, target, head));
  k.scan_head(h);
}

}  // namespace

// A task is a run of heads of one row: tokens are a chain, heads are independent. No run is longer
// than a thread's share of a row, so that one long prompt among many decodes keeps all busy.
Status SsmScan(const SsmScanArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  const Kernels& k = ActiveKernels();
  const int32_t* start = a.query_start.ptr<int32_t>();
  const int64_t rows = a.source.shape[0], heads = a.x.shape[1];
  const int64_t work = start[rows] * heads * a.b.shape[2] * a.x.shape[2];
  const bool small = work < 4 * kGrainElements;
  const int64_t run = small ? heads : std::max<int64_t>(1, heads / NumThreads());
  const int64_t runs = heads == 0 ? 0 : (heads + run - 1) / run;
  const auto task = [&](int64_t i) {
    const int64_t row = i / runs, first = i % runs * run;
    if (a.target.ptr<int32_t>()[row] < 0 || start[row] == start[row + 1]) return;
    for (int64_t h = first; h < std::min(heads, first + run); ++h) ScanOne(a, k, row, h);
  };
  if (small) {
    for (int64_t i = 0; i < rows * runs; ++i) task(i);
  } else {
    ParallelFor(rows * runs, task);
  }
  return Status::Ok();
}

}  // namespace octavo::cpu
