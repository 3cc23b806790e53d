#include "base/ops_check.h"
#include "octavo/ops.h"

namespace octavo::cpu {

// A division and a look-up per token: never worth a second thread.
Status SlotMapping(const SlotMappingArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  const int64_t rows = a.row_slot.shape[0];
  const int32_t* start = a.query_start.ptr<int32_t>();
  const int32_t* position = a.position.ptr<int32_t>();
  int64_t* slot = a.slot.ptr<int64_t>();
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t* line =
        a.block_table.ptr<int32_t>() + a.row_slot.ptr<int32_t>()[r] * a.block_table.stride[0];
    for (int64_t t = start[r]; t < start[r + 1]; ++t) {
      const int64_t entry = position[t] / a.block_size;
      slot[t] = line[entry] * a.block_size + position[t] % a.block_size;
    }
  }
  for (int64_t t = start[rows]; t < a.slot.shape[0]; ++t) slot[t] = -1;
  return Status::Ok();
}

}  // namespace octavo::cpu
