#include "base/ops_check.h"

#include <cstdint>
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
  bool empty = false;
  int i = 0;
  for (int64_t want : extents) {
    if (!same) break;
    same = want == kAnyExtent ? v.shape[i] >= 0 : v.shape[i] == want;
    empty = empty || v.shape[i] == 0;
    ++i;
  }
  if (!same) {
    return Fault(t, "has shape " + Extents(v.shape, v.rank) + ", need " +
                        Extents(extents.begin(), static_cast<int>(extents.size())));
  }
  if (empty) return Status::Ok();
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

Status CheckColumn(const char* op, const char* name, const TensorView& v, DType dtype, int64_t n,
                   bool written) {
  const OpTensor t{op, name, v, written};
  if (Status s = CheckDType(t, dtype); !s.ok()) return s;
  return CheckShape(t, {n});
}

namespace {

// One past the last byte, as an address; the first byte's where there are no elements.
uintptr_t EndOf(const TensorView& v) {
  const auto begin = reinterpret_cast<uintptr_t>(v.data);
  int64_t last = 0;
  for (int d = 0; d < v.rank; ++d) {
    if (v.shape[d] == 0) return begin;
    last += (v.shape[d] - 1) * v.stride[d];
  }
  return begin + static_cast<uintptr_t>((last + 1) * DTypeSize(v.dtype));
}

}  // namespace

Status CheckApart(const char* op, const TensorView& out,
                  std::initializer_list<const TensorView*> inputs) {
  const auto begin = reinterpret_cast<uintptr_t>(out.data), end = EndOf(out);
  for (const TensorView* v : inputs) {
    if (EndOf(*v) <= begin || reinterpret_cast<uintptr_t>(v->data) >= end) continue;
    return InvalidOp(op, "an output shares memory with an input: pass memory of its own");
  }
  return Status::Ok();
}

}  // namespace octavo
