#include "base/ops_check.h"
#include "base/ops_parts.h"
#include "octavo/ops.h"

namespace octavo::cpu {

// One after another: what a GPU saves by one pass, a kernel's start, a CPU does not pay. Everything
// is checked before anything is written.
Status NormRopeAttention(const NormRopeAttentionArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  OCTAVO_RETURN_IF_ERROR(NormRopeCache(NormRopeCacheOf(a)));
  return PagedAttention(a.attention);
}

}  // namespace octavo::cpu
