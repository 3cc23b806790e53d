// table[s, i] = source[s, i] for the entries that a row's tokens reach, with `source` in host
// memory.
//
// Shapes: table [slots, entries] int32, row_slot and seq_len [R] int32. Grid: a block of threads a
// row. Bound by the bus: 4 bytes for 16 tokens, whose keys and values are read from device memory
// in the same step at half a million times the size; neighbouring threads read neighbouring
// entries, so that a request on the bus is a whole line.
#include <cuda_runtime.h>

#include "base/ops_check.h"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "octavo/ops_tables.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 128;

struct FetchParams {
  int32_t* table;
  int64_t table_stride;
  int32_t slots;
  const int32_t* row_slot;
  const int32_t* seq_len;
  const int32_t* source;
  int32_t source_slots;
  int64_t source_stride;
  int32_t block_size;
};

__global__ void __launch_bounds__(kThreads) FetchKernel(const __grid_constant__ FetchParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const int32_t slot = p.row_slot[blockIdx.x], length = p.seq_len[blockIdx.x];
  if (slot < 0 || slot >= p.slots || slot >= p.source_slots || length <= 0) return;
  const int64_t entries = (int64_t{length} + p.block_size - 1) / p.block_size;
  const int64_t count = entries < p.source_stride ? entries : p.source_stride;
  const int32_t* from = p.source + slot * p.source_stride;
  int32_t* to = p.table + slot * p.table_stride;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) to[i] = from[i];
}

}  // namespace

Status FetchBlocks(const FetchBlocksArgs& a, CUstream_st* stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const int64_t rows = a.row_slot.shape[0];
  if (rows == 0) return Status::Ok();
  if (rows > INT32_MAX || a.table.shape[0] > INT32_MAX || a.source_slots > INT32_MAX ||
      a.block_size > INT32_MAX) {
    return InvalidOp("fetch_blocks", "rows, slots or block_size exceed 2^31");
  }
  FetchParams p{};
  p.table = a.table.ptr<int32_t>();
  p.table_stride = a.table.stride[0];
  p.slots = static_cast<int32_t>(a.table.shape[0]);
  p.row_slot = a.row_slot.ptr<int32_t>();
  p.seq_len = a.seq_len.ptr<int32_t>();
  p.source = reinterpret_cast<const int32_t*>(a.source);
  p.source_slots = static_cast<int32_t>(a.source_slots);
  p.source_stride = a.source_stride;
  p.block_size = static_cast<int32_t>(a.block_size);
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(rows);
  shape.threads = kThreads;
  shape.stream = stream;
  return Launch(FetchKernel, shape, p);
}

}  // namespace octavo::cuda
