// Python tensors as TensorViews, and Status as Python exceptions: all that the bindings of
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

// A borrowed tensor in host memory. `fault` says what no op can take, for an error that names it.
struct Tensor {
  TensorView view;
  const char* fault = nullptr;
  nb::ndarray<> owner;  // only where the tensor had to be exported as a DLPack object
};

// Fills `out` from any object that speaks DLPack; false where it does not. A torch tensor is read
// through the function table of its type: 0.1 us, where exporting a DLPack object takes 3.
bool ReadTensor(nb::handle object, Tensor* out) noexcept;

inline TensorView View(const char* name, const Tensor& t) {
  if (t.fault != nullptr) {
    throw nb::value_error((std::string(name) + " " + t.fault).c_str());
  }
  return t.view;
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

template <>
struct nanobind::detail::type_caster<octavo::bindings::Tensor> {
  NB_TYPE_CASTER(octavo::bindings::Tensor, const_name("torch.Tensor"))

  bool from_python(handle source, uint8_t, cleanup_list*) noexcept {
    return octavo::bindings::ReadTensor(source, &value);
  }
};
