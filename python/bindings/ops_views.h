// DLPack tensors as TensorViews, and Status as Python exceptions: all that the bindings of
// octavo._ops do.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>

#include "octavo/status.h"
#include "octavo/tensor_view.h"

namespace octavo::bindings {

namespace nb = nanobind;

// Any strided tensor in host memory; `.noconvert()` at every argument keeps it from being copied.
using Tensor = nb::ndarray<nb::device::cpu>;

inline DType ToDType(const char* name, nb::dlpack::dtype t) {
  using Code = nb::dlpack::dtype_code;
  if (t.lanes == 1) {
    switch (static_cast<Code>(t.code)) {
      case Code::Float:
        if (t.bits == 32) return DType::kF32;
        if (t.bits == 16) return DType::kF16;
        break;
      case Code::Bfloat:
        if (t.bits == 16) return DType::kBF16;
        break;
      case Code::Int:
        if (t.bits == 32) return DType::kI32;
        if (t.bits == 64) return DType::kI64;
        break;
      case Code::UInt:
        if (t.bits == 8) return DType::kU8;
        if (t.bits == 32) return DType::kU32;
        if (t.bits == 64) return DType::kU64;
        break;
      default:
        break;
    }
  }
  throw nb::value_error((std::string(name) +
                         " has a dtype that no op takes: use float32, bfloat16, " +
                         "float16, int32, int64 or uint64, as the op's docstring says")
                            .c_str());
}

inline TensorView View(const char* name, const Tensor& t) {
  if (t.ndim() > static_cast<size_t>(kMaxRank)) {
    throw nb::value_error((std::string(name) + " has " + std::to_string(t.ndim()) +
                           " dimensions, need at most " + std::to_string(kMaxRank))
                              .c_str());
  }
  TensorView v;
  v.data = t.data();
  v.dtype = ToDType(name, t.dtype());
  v.rank = static_cast<int>(t.ndim());
  for (int i = 0; i < v.rank; ++i) {
    v.shape[i] = static_cast<int64_t>(t.shape(static_cast<size_t>(i)));
    v.stride[i] = t.stride(static_cast<size_t>(i));
  }
  return v;
}

inline void ThrowIfError(const Status& s) {
  switch (s.code()) {
    case StatusCode::kOk:
      return;
    case StatusCode::kInvalidArgument:
      throw nb::value_error(s.message().c_str());
    default:
      throw std::runtime_error(s.message());
  }
}

// Runs an op without the GIL and raises what it reports.
template <typename Op, typename Args>
void Call(Op op, const Args& args) {
  Status status;
  {
    nb::gil_scoped_release release;
    status = op(args);
  }
  ThrowIfError(status);
}

}  // namespace octavo::bindings
