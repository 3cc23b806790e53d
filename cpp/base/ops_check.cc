#include "base/ops_check.h"

#include <string>

namespace octavo {
namespace {

std::string Extents(const int64_t* extents, int rank) {
  std::string s = "[";
  for (int i = 0; i < rank; ++i) {
    if (i > 0) s += ", ";
    s += extents[i] == kAnyExtent ? "any" : std::to_string(extents[i]);
  }
  return s + "]";
}

Status Fault(const OpTensor& t, const std::string& what) {
  return InvalidOp(t.op, std::string(t.name) + " " + what);
}

}  // namespace

Status InvalidOp(const char* op, const std::string& what) {
  return Status::InvalidArgument(std::string(op) + ": " + what);
}

Status CheckShape(const OpTensor& t, std::initializer_list<int64_t> extents) {
  const TensorView& v = t.view;
  bool same = v.rank == static_cast<int>(extents.size());
  int64_t count = 1;
  int i = 0;
  for (int64_t want : extents) {
    if (!same) break;
    same = want == kAnyExtent ? v.shape[i] >= 0 : v.shape[i] == want;
    count *= v.shape[i];
    ++i;
  }
  if (!same) {
    return Fault(t, "has shape " + Extents(v.shape, v.rank) + ", need " +
                        Extents(extents.begin(), static_cast<int>(extents.size())));
  }
  if (count == 0) return Status::Ok();
  if (v.data == nullptr) return Fault(t, "has no memory behind it");
  if (!v.last_dim_contiguous()) {
    return Fault(t, "has stride " + std::to_string(v.stride[v.rank - 1]) +
                        " in its last dimension, need 1: call contiguous() on it");
  }
  for (int d = 0; t.written && d < v.rank; ++d) {
    if (v.shape[d] > 1 && v.stride[d] == 0) {
      return Fault(t, "is written but expanded (stride 0) in dimension " + std::to_string(d) +
                          ": pass memory of its own");
    }
  }
  return Status::Ok();
}

Status CheckDType(const OpTensor& t, DType want) {
  if (t.view.dtype == want) return Status::Ok();
  return Fault(t,
               std::string("has dtype ") + DTypeName(t.view.dtype) + ", need " + DTypeName(want));
}

Status CheckFloat(const OpTensor& t) {
  const DType d = t.view.dtype;
  if (d == DType::kF32 || d == DType::kBF16 || d == DType::kF16) return Status::Ok();
  return Fault(t, std::string("has dtype ") + DTypeName(d) + ", need float32, bfloat16 or float16");
}

Status CheckSameDType(const OpTensor& t, const OpTensor& other) {
  if (t.view.dtype == other.view.dtype) return Status::Ok();
  return Fault(t, std::string("has dtype ") + DTypeName(t.view.dtype) + ", need " +
                      DTypeName(other.view.dtype) + " as " + other.name + " has");
}

Status CheckSameShape(const OpTensor& t, const OpTensor& other) {
  bool same = t.view.rank == other.view.rank;
  for (int i = 0; same && i < t.view.rank; ++i) same = t.view.shape[i] == other.view.shape[i];
  if (same) return Status::Ok();
  return Fault(t, "has shape " + Extents(t.view.shape, t.view.rank) + ", need " +
                      Extents(other.view.shape, other.view.rank) + " as " + other.name + " has");
}

}  // namespace octavo
