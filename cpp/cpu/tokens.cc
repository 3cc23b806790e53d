// Tokens that only the executor knows: filled into the next step's ids, kept from this step's.
#include <cstring>

#include "base/ops_check.h"
#include "octavo/ops.h"

namespace octavo::cpu {

Status FillTokens(const FillTokensArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  int32_t* id = a.token_id.ptr<int32_t>();
  const int32_t* start = a.query_start.ptr<int32_t>();
  for (int64_t r = 0; r < a.row_slot.shape[0]; ++r) {
    const int32_t last = a.last_token.ptr<int32_t>()[a.row_slot.ptr<int32_t>()[r]];
    for (int64_t t = start[r]; t < start[r + 1]; ++t) {
      if (id[t] < 0) id[t] = last < 0 ? 0 : last;
    }
  }
  return Status::Ok();
}

Status KeepTokens(const KeepTokensArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  for (int64_t s = 0; s < a.token.shape[0]; ++s) {
    const int32_t slot = a.row_slot.ptr<int32_t>()[a.sample_row.ptr<int32_t>()[s]];
    a.last_token.ptr<int32_t>()[slot] = a.token.ptr<int32_t>()[s];
  }
  const int64_t landing = a.landing.has_value() ? *a.landing->ptr<int64_t>() : 0;
  if (landing != 0 && a.token.shape[0] > 0) {
    std::memcpy(reinterpret_cast<int32_t*>(landing), a.token.ptr<int32_t>(),
                static_cast<size_t>(a.token.shape[0]) * sizeof(int32_t));
  }
  return Status::Ok();
}

}  // namespace octavo::cpu
