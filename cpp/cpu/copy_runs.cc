#include <cstring>

#include "base/ops_check.h"
#include "octavo/ops_tables.h"

namespace octavo::cpu {

Status CopyRuns(const CopyRunsArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  for (int64_t i = 0; i < a.runs.shape[0]; ++i) {
    const int64_t* run = a.runs.ptr<int64_t>() + i * a.runs.stride[0];
    if (run[2] == 0) continue;  // there may be no memory at all
    uint8_t* pool = a.pool.ptr<uint8_t>() + run[0];
    uint8_t* memory = a.memory.ptr<uint8_t>() + run[1];
    std::memcpy(a.to_pool ? pool : memory, a.to_pool ? memory : pool, static_cast<size_t>(run[2]));
  }
  return Status::Ok();
}

}  // namespace octavo::cpu
