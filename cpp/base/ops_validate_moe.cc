// What the ops of a mixture of experts ask of shapes, dtypes and the numbers in index tensors.
#include <cmath>
#include <string>

#include "base/ops_check.h"
#include "octavo/ops_moe.h"

namespace octavo {
namespace {

constexpr int64_t kMaxExperts = 1 << 16;

Status CheckTable(const OpTensor& t, DType dtype, int64_t rows, int64_t columns) {
  OCTAVO_RETURN_IF_ERROR(CheckDType(t, dtype));
  return CheckShape(t, {rows, columns});
}

Status CheckStart(const char* op, const TensorView& start, bool written) {
  const OpTensor t{op, "start", start, written};
  OCTAVO_RETURN_IF_ERROR(CheckDType(t, DType::kI32));
  OCTAVO_RETURN_IF_ERROR(CheckShape(t, {kAnyExtent}));
  if (start.shape[0] >= 2 && start.shape[0] <= kMaxExperts + 1) return Status::Ok();
  return InvalidOp(op, "start has " + std::to_string(start.shape[0]) +
                           " entries, need one more than the 1 to 65536 experts");
}

// Every number of a [N, k] table lies in [0, limit).
Status CheckEntries(const char* op, const char* name, const TensorView& v, int64_t limit) {
  if (v.shape[1] == 0) return Status::Ok();
  for (int64_t n = 0; n < v.shape[0]; ++n) {
    const int32_t* row = v.ptr<int32_t>() + n * v.stride[0];
    for (int64_t j = 0; j < v.shape[1]; ++j) {
      if (row[j] >= 0 && row[j] < limit) continue;
      return InvalidOp(op, std::string(name) + "[" + std::to_string(n) + ", " + std::to_string(j) +
                               "] is " + std::to_string(row[j]) + ", need 0 to " +
                               std::to_string(limit - 1));
    }
  }
  return Status::Ok();
}

// The groups cut the experts evenly, and those that are chosen hold enough of them.
Status CheckGroups(const MoeRouteArgs& a) {
  const int64_t experts = a.logits.shape[1], k = a.ids.shape[1];
  const bool even = a.groups >= 1 && a.groups <= experts && experts % a.groups == 0;
  const int64_t size = even ? experts / a.groups : 0;
  if (even && a.top_groups >= 1 && a.top_groups <= a.groups && a.group_best >= 1 &&
      a.group_best <= size && a.top_groups * size >= k) {
    return Status::Ok();
  }
  return InvalidOp("moe_route", "groups is " + std::to_string(a.groups) + ", top_groups " +
                                    std::to_string(a.top_groups) + " and group_best " +
                                    std::to_string(a.group_best) + ", need even groups of the " +
                                    std::to_string(experts) +
                                    " experts, as many chosen as hold the " + std::to_string(k) +
                                    " of a token, and scores that a group has");
}

}  // namespace

Status Validate(const MoeRouteArgs& a) {
  const char* op = "moe_route";
  OCTAVO_RETURN_IF_ERROR(CheckTable({op, "logits", a.logits}, DType::kF32, kAnyExtent, kAnyExtent));
  const int64_t n = a.logits.shape[0], experts = a.logits.shape[1];
  OCTAVO_RETURN_IF_ERROR(CheckTable({op, "ids", a.ids, true}, DType::kI32, n, kAnyExtent));
  const int64_t k = a.ids.shape[1];
  OCTAVO_RETURN_IF_ERROR(CheckTable({op, "weights", a.weights, true}, DType::kF32, n, k));
  if (experts > kMaxExperts || k < 1 || k > experts) {
    return InvalidOp(op, "ids has " + std::to_string(k) + " columns and logits " +
                             std::to_string(experts) +
                             ", need 1 to as many experts, 65536 at most");
  }
  OCTAVO_RETURN_IF_ERROR(CheckGroups(a));
  if (!std::isfinite(a.scale)) {
    return InvalidOp(op, "scale is " + std::to_string(a.scale) + ", need a finite number");
  }
  if (!a.bias.has_value()) return Status::Ok();
  const OpTensor bias{op, "bias", *a.bias};
  OCTAVO_RETURN_IF_ERROR(CheckDType(bias, DType::kF32));
  return CheckShape(bias, {experts});
}

Status Validate(const MoeGroupArgs& a) {
  const char* op = "moe_group";
  OCTAVO_RETURN_IF_ERROR(CheckTable({op, "ids", a.ids}, DType::kI32, kAnyExtent, kAnyExtent));
  const int64_t n = a.ids.shape[0], k = a.ids.shape[1];
  if (n * k > INT32_MAX) {
    return InvalidOp(op, "ids has " + std::to_string(n * k) + " pairs, need at most 2147483647");
  }
  OCTAVO_RETURN_IF_ERROR(CheckTable({op, "place", a.place, true}, DType::kI32, n, k));
  const OpTensor token{op, "token", a.token, true};
  OCTAVO_RETURN_IF_ERROR(CheckDType(token, DType::kI32));
  OCTAVO_RETURN_IF_ERROR(CheckShape(token, {n * k}));
  OCTAVO_RETURN_IF_ERROR(CheckStart(op, a.start, /*written=*/true));
  for (const TensorView* out : {&a.place, &a.token, &a.start}) {
    OCTAVO_RETURN_IF_ERROR(CheckApart(op, *out, {&a.ids}));
  }
  return CheckApart(op, a.token, {&a.place});
}

Status Validate(const GroupedLinearArgs& a) {
  const char* op = "grouped_linear";
  const OpTensor x{op, "x", a.x}, weight{op, "weight", a.weight};
  const OpTensor out{op, "out", a.out, /*written=*/true};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(x));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(out, x));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(weight, x));
  OCTAVO_RETURN_IF_ERROR(CheckStart(op, a.start, /*written=*/false));
  OCTAVO_RETURN_IF_ERROR(CheckShape(x, {kAnyExtent, kAnyExtent}));
  const int64_t experts = a.start.shape[0] - 1;
  OCTAVO_RETURN_IF_ERROR(CheckShape(weight, {experts, kAnyExtent, a.x.shape[1]}));
  OCTAVO_RETURN_IF_ERROR(CheckShape(out, {a.x.shape[0], a.weight.shape[1]}));
  if (a.out.data != nullptr && (a.out.data == a.x.data || a.out.data == a.weight.data)) {
    return InvalidOp(op, "out shares memory with x or weight, need a tensor of its own");
  }
  OCTAVO_RETURN_IF_ERROR(CheckApart(op, a.out, {&a.start}));
  if (!a.bias.has_value()) return Status::Ok();
  const OpTensor bias{op, "bias", *a.bias};
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(bias, x));
  return CheckShape(bias, {experts, a.weight.shape[1]});
}

Status Validate(const MoeCombineArgs& a) {
  const char* op = "moe_combine";
  const OpTensor rows{op, "rows", a.rows}, out{op, "out", a.out, /*written=*/true};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(rows));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(out, rows));
  OCTAVO_RETURN_IF_ERROR(CheckShape(rows, {kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckShape(out, {kAnyExtent, a.rows.shape[1]}));
  const int64_t n = a.out.shape[0];
  OCTAVO_RETURN_IF_ERROR(CheckTable({op, "place", a.place}, DType::kI32, n, kAnyExtent));
  OCTAVO_RETURN_IF_ERROR(CheckTable({op, "weights", a.weights}, DType::kF32, n, a.place.shape[1]));
  return CheckApart(op, a.out, {&a.place});
}

Status Validate(const ClampedSwigluArgs& a) {
  const char* op = "clamped_swiglu";
  const OpTensor out{op, "out", a.out, /*written=*/true}, gate_up{op, "gate_up", a.gate_up};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(gate_up));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(out, gate_up));
  OCTAVO_RETURN_IF_ERROR(CheckShape(out, {kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckShape(gate_up, {a.out.shape[0], 2 * a.out.shape[1]}));
  if (a.limit > 0.0f && std::isfinite(a.limit) && std::isfinite(a.alpha)) return Status::Ok();
  return InvalidOp(op, "alpha is " + std::to_string(a.alpha) + " and limit " +
                           std::to_string(a.limit) + ", need finite numbers, the limit above 0");
}

Status ValidateIndices(const MoeGroupArgs& a) {
  return CheckEntries("moe_group", "ids", a.ids, a.start.shape[0] - 1);
}

Status ValidateIndices(const GroupedLinearArgs& a) {
  const int32_t* start = a.start.ptr<int32_t>();
  const int64_t experts = a.start.shape[0] - 1;
  bool good = start[0] == 0 && start[experts] == a.x.shape[0];
  for (int64_t e = 0; e < experts; ++e) good = good && start[e] <= start[e + 1];
  if (good) return Status::Ok();
  return InvalidOp("grouped_linear", "start must begin at 0, never fall and end at x's " +
                                         std::to_string(a.x.shape[0]) + " rows");
}

Status ValidateIndices(const MoeCombineArgs& a) {
  return CheckEntries("moe_combine", "place", a.place, a.rows.shape[0]);
}

}  // namespace octavo
