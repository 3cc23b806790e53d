#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/scratch.h"
#include "octavo/ops.h"

namespace octavo::cpu {
namespace {

// Weights of one task. Some ten microseconds of memory traffic: large enough to be worth handing
// out, small enough that a thread which lost its core for a while holds nobody up.
constexpr int64_t kTaskBytes = 128 * 1024;
constexpr int64_t kTaskRowStep = 4;  // rows of the weight that the kernel takes together

const void* At(const void* p, int64_t bytes) {
  return p == nullptr ? nullptr : static_cast<const char*>(p) + bytes;
}

// Norms x into memory of the call and makes that the input.
void NormInputs(const LinearArgs& a, const Kernels& k, LinearRowsArgs* rows) {
  const int64_t n = rows->columns, row_bytes = n * DTypeSize(rows->dtype);
  char* const normed =
      static_cast<char*>(ThreadScratch(ScratchUse::kCall, rows->inputs * row_bytes));
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      k.rms_norm(rows->dtype, normed + i * row_bytes, RowOf(a.x, i), a.norm->data, n, a.eps,
                 a.norm_offset);
    }
  };
  ParallelRanges(rows->inputs, GrainOfRows(n), NumThreads(), range);
  rows->x = normed;
  rows->x_stride = n;
}

// The columns [begin, end) of out, where more than a product is asked for. The product goes through
// memory of the task, in which a tile of it stays in L1.
void FusedColumns(const LinearArgs& a, const Kernels& k, LinearRowsArgs rows, int64_t begin,
                  int64_t end) {
  const int64_t size = DTypeSize(rows.dtype), width = end - begin;
  const int64_t row_bytes = width * size, tile_bytes = rows.inputs * row_bytes;
  char* const tile = static_cast<char*>(ThreadScratch(ScratchUse::kTask, 2 * tile_bytes));
  rows.out_stride = width;
  const auto product = [&](int64_t first, char* to) {
    LinearRowsArgs part = rows;
    part.out = to;
    part.weight = At(rows.weight, first * rows.weight_stride * size);
    part.bias = At(rows.bias, first * size);
    k.linear_rows(part, 0, width);
  };
  product(begin, tile);
  if (a.gate != Gate::kNone) product(a.out.shape[1] + begin, tile + tile_bytes);
  const auto gate = a.gate == Gate::kSilu ? k.silu_mul : k.gelu_tanh_mul;
  for (int64_t i = 0; i < rows.inputs; ++i) {
    char* const row = tile + i * row_bytes;
    char* const out = static_cast<char*>(RowOf(a.out, i)) + begin * size;
    if (a.gate != Gate::kNone) {
      gate(rows.dtype, a.add ? row : out, row, row + tile_bytes, width);
    }
    if (a.add) k.add(rows.dtype, out, row, width);
  }
}

}  // namespace

Status Linear(const LinearArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  if (a.squares.has_value() || a.leaves.has_value()) {
    return InvalidOp("linear", "squares and leaves are of products on CUDA: give norm");
  }
  if (a.out.num_elements() == 0) return Status::Ok();
  const Kernels& k = ActiveKernels();
  LinearRowsArgs rows = ProductOf(a);
  if (a.norm.has_value()) NormInputs(a, k, &rows);
  const bool gated = a.gate != Gate::kNone;
  const int64_t n = a.out.shape[1];
  const int64_t row_bytes =
      std::max<int64_t>(1, rows.columns * DTypeSize(a.x.dtype)) * (gated ? 2 : 1);
  const int64_t steps = std::max<int64_t>(1, kTaskBytes / (row_bytes * kTaskRowStep));
  const int64_t per_task = steps * kTaskRowStep;
  const int64_t tasks = (n + per_task - 1) / per_task;
  const auto task = [&](int64_t i) {
    const int64_t begin = i * per_task, end = std::min(n, begin + per_task);
    if (gated || a.add) {
      FusedColumns(a, k, rows, begin, end);
    } else {
      k.linear_rows(rows, begin, end);
    }
  };
  if (tasks == 1) {
    task(0);
  } else {
    ParallelFor(tasks, task);
  }
  return Status::Ok();
}

}  // namespace octavo::cpu
