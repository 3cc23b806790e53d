// state_mapping: which block of a recurrent group each row reads its state from and writes it to.
//
// Shapes: source, target, row_slot, seq_len [R] int32, query_start [R + 1]. Grid: a thread a row.
// Bound by launch.
#include "base/ops_check.h"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "octavo/cuda_layers.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 128;

struct MappingParams {
  int32_t* source;
  int32_t* target;
  const int32_t* query_start;
  const int32_t* row_slot;
  const int32_t* seq_len;
  const int32_t* table;
  int64_t table_stride;
  int64_t block_size;
  int64_t columns;
  int32_t rows;
  int32_t slots;
};

__global__ void __launch_bounds__(kThreads) MappingKernel(const __grid_constant__ MappingParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const int r = static_cast<int>(blockIdx.x) * kThreads + threadIdx.x;
  if (r >= p.rows) return;
  const int32_t slot = p.row_slot[r];
  const int64_t length = p.seq_len[r], tokens = int64_t{p.query_start[r + 1]} - p.query_start[r];
  // The block of a position; 0, the null block, holds nobody's state and stands for none.
  const auto block = [&](int64_t position) {
    const int64_t entry = position / p.block_size;
    return entry < p.columns ? p.table[slot * p.table_stride + entry] : 0;
  };
  int32_t source = -1, target = -1;
  if (tokens > 0 && length >= tokens && slot >= 0 && slot < p.slots) {
    const int32_t last = block(length - 1);
    const int32_t before = length > tokens ? block(length - tokens - 1) : -1;
    if (last > 0 && before != 0 && (length == tokens || before > 0)) {
      source = before;
      target = last;
    }
  }
  p.source[r] = source;
  p.target[r] = target;
}

}  // namespace

Status StateMapping(const StateMappingArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const int64_t rows = a.source.shape[0];
  if (rows == 0) return Status::Ok();
  if (rows > INT32_MAX - kThreads || a.block_table.shape[0] > INT32_MAX) {
    return InvalidOp("state_mapping", "source or block_table has 2^31 rows or more");
  }
  MappingParams p{};
  p.source = a.source.ptr<int32_t>();
  p.target = a.target.ptr<int32_t>();
  p.query_start = a.query_start.ptr<int32_t>();
  p.row_slot = a.row_slot.ptr<int32_t>();
  p.seq_len = a.seq_len.ptr<int32_t>();
  p.table = a.block_table.ptr<int32_t>();
  p.table_stride = a.block_table.stride[0];
  p.block_size = a.block_size;
  p.columns = a.block_table.shape[1];
  p.rows = static_cast<int32_t>(rows);
  p.slots = static_cast<int32_t>(a.block_table.shape[0]);
  LaunchShape shape;
  shape.grid = static_cast<unsigned>((rows + kThreads - 1) / kThreads);
  shape.threads = kThreads;
  shape.stream = stream;
  return LaunchDependent(MappingKernel, shape, p);
}

}  // namespace octavo::cuda
