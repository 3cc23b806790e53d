// slot_mapping, fill_tokens, keep_tokens: the small ops between a step's columns.
//
// Shapes as in ops.h. Grid: a thread a token, or a sample. Bound by launch: a few thousand
// integers, those that land in host memory by the bus. A row slot, table entry or sample row out of
// range gives slot -1, leaves the token or keeps nothing.
#include "attention/schedule.h"
#include "base/ops_check.h"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;

// The rows of a step, as every op here sees them.
struct Rows {
  const int32_t* query_start;  // [rows + 1]
  const int32_t* row_slot;     // [rows]
  int32_t rows;
  int32_t slots;

  // The slot of the row that owns a token; -1 for none, or one that is out of range.
  __device__ __forceinline__ int32_t SlotOf(int64_t token) const {
    if (rows == 0 || token >= query_start[rows]) return -1;
    const int32_t slot = row_slot[FindOwner(query_start, rows, static_cast<int32_t>(token))];
    return slot < slots ? slot : -1;
  }
};

struct SlotParams {
  Rows rows;
  int64_t* slot;
  const int32_t* position;
  const int32_t* table;
  int64_t table_stride;
  int64_t table_columns;
  int64_t tokens;
  int32_t block_size;
};

__global__ void __launch_bounds__(kThreads) SlotKernel(const __grid_constant__ SlotParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const int64_t token = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (token >= p.tokens) return;
  int64_t slot = -1;
  const int32_t line = p.rows.SlotOf(token);
  if (line >= 0) {
    const int32_t position = p.position[token], entry = position / p.block_size;
    if (position >= 0 && entry < p.table_columns) {
      const int32_t block = p.table[line * p.table_stride + entry];
      if (block >= 0) slot = int64_t{block} * p.block_size + (position - entry * p.block_size);
    }
  }
  p.slot[token] = slot;
}

struct FillParams {
  Rows rows;
  int32_t* token_id;
  const int32_t* last_token;
  int64_t tokens;
};

__global__ void __launch_bounds__(kThreads) FillKernel(const __grid_constant__ FillParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const int64_t token = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (token >= p.tokens || p.token_id[token] >= 0) return;
  const int32_t slot = p.rows.SlotOf(token);
  // Padding behind the last row has no owner; its embedding is read all the same.
  const int32_t last = slot >= 0 ? p.last_token[slot] : 0;
  p.token_id[token] = last < 0 ? 0 : last;
}

struct KeepParams {
  int32_t* last_token;
  const int32_t* token;
  const int32_t* sample_row;
  const int32_t* row_slot;
  const int64_t* landing;  // null: nowhere
  int64_t samples;
  int32_t rows;
  int32_t slots;
};

__global__ void __launch_bounds__(kThreads) KeepKernel(const __grid_constant__ KeepParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const int64_t s = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (s >= p.samples) return;
  const int32_t token = p.token[s];
  // Neighbouring threads write neighbouring tokens: the bus carries whole lines.
  if (p.landing != nullptr && *p.landing != 0) reinterpret_cast<int32_t*>(*p.landing)[s] = token;
  const int32_t row = p.sample_row[s];
  if (row < 0 || row >= p.rows) return;
  const int32_t slot = p.row_slot[row];
  if (slot >= 0 && slot < p.slots) p.last_token[slot] = token;
}

Rows MakeRows(const TensorView& query_start, const TensorView& row_slot, int64_t slots) {
  return {query_start.ptr<int32_t>(), row_slot.ptr<int32_t>(),
          static_cast<int32_t>(row_slot.shape[0]), static_cast<int32_t>(slots)};
}

template <typename Params>
Status LaunchEach(void (*kernel)(Params), int64_t count, const Params& p, cudaStream_t stream) {
  if (count == 0) return Status::Ok();
  LaunchShape shape;
  shape.grid = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  shape.threads = kThreads;
  shape.stream = stream;
  return LaunchDependent(kernel, shape, p);
}

Status CheckCount(const char* op, int64_t count) {
  if (count <= INT32_MAX) return Status::Ok();
  return InvalidOp(op, "a column has 2^31 entries or more");
}

}  // namespace

Status SlotMapping(const SlotMappingArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const char* op = "slot_mapping";
  OCTAVO_RETURN_IF_ERROR(CheckCount(op, a.slot.shape[0]));
  OCTAVO_RETURN_IF_ERROR(CheckCount(op, a.row_slot.shape[0]));
  OCTAVO_RETURN_IF_ERROR(CheckCount(op, a.block_table.shape[0]));
  if (a.block_size > INT32_MAX) return InvalidOp(op, "block_size is 2^31 or more");
  const SlotParams p{MakeRows(a.query_start, a.row_slot, a.block_table.shape[0]),
                     a.slot.ptr<int64_t>(),
                     a.position.ptr<int32_t>(),
                     a.block_table.ptr<int32_t>(),
                     a.block_table.stride[0],
                     a.block_table.shape[1],
                     a.slot.shape[0],
                     static_cast<int32_t>(a.block_size)};
  return LaunchEach(SlotKernel, p.tokens, p, stream);
}

Status FillTokens(const FillTokensArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(CheckCount("fill_tokens", a.token_id.shape[0]));
  OCTAVO_RETURN_IF_ERROR(CheckCount("fill_tokens", a.row_slot.shape[0]));
  OCTAVO_RETURN_IF_ERROR(CheckCount("fill_tokens", a.last_token.shape[0]));
  const FillParams p{MakeRows(a.query_start, a.row_slot, a.last_token.shape[0]),
                     a.token_id.ptr<int32_t>(), a.last_token.ptr<int32_t>(), a.token_id.shape[0]};
  return LaunchEach(FillKernel, p.tokens, p, stream);
}

Status KeepTokens(const KeepTokensArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(CheckCount("keep_tokens", a.token.shape[0]));
  OCTAVO_RETURN_IF_ERROR(CheckCount("keep_tokens", a.row_slot.shape[0]));
  OCTAVO_RETURN_IF_ERROR(CheckCount("keep_tokens", a.last_token.shape[0]));
  const KeepParams p{a.last_token.ptr<int32_t>(),
                     a.token.ptr<int32_t>(),
                     a.sample_row.ptr<int32_t>(),
                     a.row_slot.ptr<int32_t>(),
                     a.landing.has_value() ? a.landing->ptr<int64_t>() : nullptr,
                     a.token.shape[0],
                     static_cast<int32_t>(a.row_slot.shape[0]),
                     static_cast<int32_t>(a.last_token.shape[0])};
  return LaunchEach(KeepKernel, p.samples, p, stream);
}

}  // namespace octavo::cuda
