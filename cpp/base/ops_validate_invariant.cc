// Validation of the ops in ops_invariant.h.
#include <cmath>

#include "base/ops_check.h"
#include "octavo/ops_invariant.h"

namespace octavo {

Status Validate(const GemmArgs& a) {
  return CheckProduct("gemm", a.out, a.x, a.weight, a.bias, /*gated=*/false);
}

Status Validate(const SoftCapArgs& a) {
  const char* op = "soft_cap";
  const OpTensor x{op, "x", a.x, /*written=*/true};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(x, {kAnyExtent, kAnyExtent}));
  if (!(a.cap > 0.0f) || !std::isfinite(a.cap)) {
    return InvalidOp(op, "cap is " + std::to_string(a.cap) + ", need a finite number above 0");
  }
  return Status::Ok();
}

}  // namespace octavo
