#include <string>

#include "base/ops_check.h"
#include "base/ops_parts.h"
#include "octavo/ops_tables.h"

namespace octavo {
namespace {

constexpr const char* kOp = "fetch_blocks";

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
