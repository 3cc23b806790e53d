#include <string>

#include "base/ops_check.h"
#include "base/ops_parts.h"
#include "octavo/ops_tables.h"

namespace octavo {
namespace {

constexpr const char* kOp = "fetch_blocks";
constexpr const char* kCopyOp = "copy_runs";

bool Within(int64_t first, int64_t bytes, const TensorView& memory) {
  return first >= 0 && bytes >= 0 && first <= memory.shape[0] && bytes <= memory.shape[0] - first;
}

}  // namespace

Status Validate(const FetchBlocksArgs& a) {
  const OpTensor table{kOp, "table", a.table, /*written=*/true};
  const OpTensor row_slot{kOp, "row_slot", a.row_slot};
  const OpTensor seq_len{kOp, "seq_len", a.seq_len};
  for (const OpTensor* t : {&table, &row_slot, &seq_len}) {
    OCTAVO_RETURN_IF_ERROR(CheckDType(*t, DType::kI32));
  }
  OCTAVO_RETURN_IF_ERROR(CheckShape(table, {kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckShape(row_slot, {kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckShape(seq_len, {a.row_slot.shape[0]}));
  OCTAVO_RETURN_IF_ERROR(CheckBlockSize(kOp, a.block_size));
  if (a.source == 0 || a.source_slots < 0 || a.source_stride < 0) {
    return InvalidOp(kOp, "source is no table: pass its address, its lines and their length");
  }
  if (a.source_stride > a.table.shape[1]) {
    return InvalidOp(kOp, "a line of source has " + std::to_string(a.source_stride) +
                              " entries, table has room for " + std::to_string(a.table.shape[1]));
  }
  return CheckApart(kOp, a.table, {&a.row_slot, &a.seq_len});
}

Status Validate(const CopyRunsArgs& a) {
  OCTAVO_RETURN_IF_ERROR(
      CheckColumn(kCopyOp, "pool", a.pool, DType::kU8, kAnyExtent, /*written=*/a.to_pool));
  OCTAVO_RETURN_IF_ERROR(
      CheckColumn(kCopyOp, "memory", a.memory, DType::kU8, kAnyExtent, /*written=*/!a.to_pool));
  const OpTensor runs{kCopyOp, "runs", a.runs};
  OCTAVO_RETURN_IF_ERROR(CheckDType(runs, DType::kI64));
  OCTAVO_RETURN_IF_ERROR(CheckShape(runs, {kAnyExtent, 3}));
  const TensorView& from = a.to_pool ? a.memory : a.pool;
  OCTAVO_RETURN_IF_ERROR(CheckApart(kCopyOp, a.to_pool ? a.pool : a.memory, {&from, &a.runs}));
  for (int64_t i = 0; i < a.runs.shape[0]; ++i) {
    const int64_t* run = a.runs.ptr<int64_t>() + i * a.runs.stride[0];
    if (Within(run[0], run[2], a.pool) && Within(run[1], run[2], a.memory)) continue;
    return InvalidOp(kCopyOp, "runs[" + std::to_string(i) + "] is (" + std::to_string(run[0]) +
                                  ", " + std::to_string(run[1]) + ", " + std::to_string(run[2]) +
                                  "), need bytes within pool (" + std::to_string(a.pool.shape[0]) +
                                  ") and memory (" + std::to_string(a.memory.shape[0]) + ")");
  }
  return Status::Ok();
}

Status ValidateIndices(const FetchBlocksArgs& a) {
  const int32_t* slot = a.row_slot.ptr<int32_t>();
  const int32_t* length = a.seq_len.ptr<int32_t>();
  for (int64_t r = 0; r < a.row_slot.shape[0]; ++r) {
    if (slot[r] < 0 || slot[r] >= a.table.shape[0]) {
      return InvalidOp(kOp, "row_slot[" + std::to_string(r) + "] is " + std::to_string(slot[r]) +
                                ", need 0 to " + std::to_string(a.table.shape[0] - 1));
    }
    if (length[r] < 0 || (int64_t{length[r]} + a.block_size - 1) / a.block_size > a.source_stride) {
      return InvalidOp(kOp, "seq_len[" + std::to_string(r) + "] is " + std::to_string(length[r]) +
                                ", a line of source has " + std::to_string(a.source_stride) +
                                " entries");
    }
  }
  return Status::Ok();
}

}  // namespace octavo
