#include <cstring>

#include "base/ops_check.h"
#include "octavo/ops_tables.h"

namespace octavo::cpu {

Status FetchBlocks(const FetchBlocksArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  const auto* source = reinterpret_cast<const int32_t*>(a.source);
  const int32_t* row_slot = a.row_slot.ptr<int32_t>();
  const int32_t* seq_len = a.seq_len.ptr<int32_t>();
  for (int64_t r = 0; r < a.row_slot.shape[0]; ++r) {
    const int64_t slot = row_slot[r];
    const int64_t entries = (seq_len[r] + a.block_size - 1) / a.block_size;
    if (slot >= a.source_slots || entries == 0) continue;
    std::memcpy(a.table.ptr<int32_t>() + slot * a.table.stride[0], source + slot * a.source_stride,
                static_cast<size_t>(entries) * sizeof(int32_t));
  }
  return Status::Ok();
}

}  // namespace octavo::cpu
