#include "base/ops_check.h"
#include "base/ops_parts.h"
#include "octavo/ops.h"

namespace octavo::cpu {

// One after another: a token's heads stay in the first cache levels between the passes, so fusing
// the loops would save little on a CPU.
Status NormRopeCache(const NormRopeCacheArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  if (a.q_norm.has_value()) {
    OCTAVO_RETURN_IF_ERROR(RmsNorm(NormOf(a, a.q, *a.q_norm)));
    OCTAVO_RETURN_IF_ERROR(RmsNorm(NormOf(a, a.k, *a.k_norm)));
  }
  OCTAVO_RETURN_IF_ERROR(Rope(RopeOf(a)));
  return CacheWrite(CacheWriteOf(a));
}

}  // namespace octavo::cpu
