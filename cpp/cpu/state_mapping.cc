#include "base/ops_check.h"
#include "octavo/ops_state.h"

namespace octavo::cpu {

Status StateMapping(const StateMappingArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  const int32_t* start = a.query_start.ptr<int32_t>();
  int32_t* source = a.source.ptr<int32_t>();
  int32_t* target = a.target.ptr<int32_t>();
  for (int64_t r = 0; r < a.source.shape[0]; ++r) {
    const int64_t length = a.seq_len.ptr<int32_t>()[r], tokens = start[r + 1] - start[r];
    const int32_t* line =
        a.block_table.ptr<int32_t>() + a.row_slot.ptr<int32_t>()[r] * a.block_table.stride[0];
    const bool continues = tokens > 0 && length > tokens;
    source[r] = continues ? line[(length - tokens - 1) / a.block_size] : -1;
    target[r] = tokens > 0 ? line[(length - 1) / a.block_size] : -1;
  }
  return Status::Ok();
}

}  // namespace octavo::cpu
