// Validation of the ops in ops_invariant.h.
#include <cmath>

#include "base/ops_check.h"
#include "octavo/ops_invariant.h"

namespace octavo {

Status Validate(const GemmArgs& a) {
  const char* op = "gemm";
  const OpTensor x{op, "x", a.x};
  const OpTensor out{op, "out", a.out, /*written=*/true};
  const OpTensor weight{op, "weight", a.weight};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(x));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(out, x));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(weight, x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(x, {kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckShape(weight, {kAnyExtent, a.x.shape[1]}));
  OCTAVO_RETURN_IF_ERROR(CheckShape(out, {a.x.shape[0], a.weight.shape[0]}));
  if (a.out.data != nullptr && (a.out.data == a.x.data || a.out.data == a.weight.data)) {
    return InvalidOp(op, "out shares memory with x or weight, need a tensor of its own");
  }
  if (!a.bias.has_value()) return Status::Ok();
  const OpTensor bias{op, "bias", *a.bias};
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(bias, x));
  return CheckShape(bias, {a.weight.shape[0]});
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
