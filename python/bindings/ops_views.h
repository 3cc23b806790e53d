// Python tensors as TensorViews, their device as the backend, and Status as Python exceptions: all
// that the bindings of octavo._ops do.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "octavo/cuda_ops.h"
#include "octavo/status.h"
#include "octavo/tensor_view.h"

namespace octavo::bindings {

namespace nb = nanobind;

struct ExchangeTable;  // DLPack's table of C functions

// Where a tensor lies, in DLPack's numbers.
struct Place {
  int type = nb::device::cpu::value;
  int index = 0;

  bool cuda() const { return type == nb::device::cuda::value; }
  bool operator==(const Place& o) const { return type == o.type && (!cuda() || index == o.index); }
  std::string Name() const { return cuda() ? "cuda:" + std::to_string(index) : "cpu"; }
};

// A borrowed tensor. `fault` says what no op can take, for an error that names it.
struct Tensor {
  TensorView view;
  Place place;
  const char* fault = nullptr;
  const ExchangeTable* table = nullptr;
  nb::ndarray<> owner;  // only where the tensor had to be exported as a DLPack object
};

// Fills `out` from any object that speaks DLPack; false where it does not. A torch tensor is read
// through the function table of its type: 0.1 us, where exporting a DLPack object takes 3.
bool ReadTensor(nb::handle object, Tensor* out) noexcept;

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

template <typename Args>
using CpuOp = Status (*)(const Args&);
template <typename Args>
using CudaOp = Status (*)(const Args&, cuda::Stream);

// The CUDA op of a name, or none in a build without CUDA, where no tensor on such a device gets
// past View.
#ifdef OCTAVO_HAS_CUDA
#define OCTAVO_CUDA_OP(op) (&::octavo::cuda::op)
#else
#define OCTAVO_CUDA_OP(op) nullptr
#endif

// One call of an op. Its first tensor decides the backend; the others have to lie there too.
class Call {
 public:
  TensorView View(const char* name, const Tensor& t);
  std::optional<TensorView> View(const char* name, const std::optional<Tensor>& t) {
    if (!t.has_value()) return std::nullopt;
    return View(name, *t);
  }

  bool cuda() const { return place_.cuda(); }

  // Runs the backend of the tensors without the GIL, on the current stream of whoever made them,
  // and raises what it reports.
  template <typename Args>
  void Run(CpuOp<Args> cpu_op, std::type_identity_t<CudaOp<Args>> cuda_op, const Args& args) const {
    if (cuda()) {
      if (cuda_op == nullptr) throw nb::value_error("this op has no CUDA kernel");
      RunCuda([&](cuda::Stream stream) { return cuda_op(args, stream); });
      return;
    }
    Status status;
    {
      nb::gil_scoped_release release;
      status = cpu_op(args);
    }
    ThrowIfError(status);
  }

  // Runs op(stream) on the tensors' device. REQUIRES: cuda().
  template <typename Op>
  void RunCuda(Op op) const {
    Status status;
#ifdef OCTAVO_HAS_CUDA
    const cuda::Stream stream = CurrentStream();
    {
      nb::gil_scoped_release release;
      const cuda::DeviceScope scope(place_.index);
      status = scope.status().ok() ? op(stream) : scope.status();
    }
#else
    status = Status::Internal("this build has no CUDA");
    static_cast<void>(op);
#endif
    ThrowIfError(status);
  }

 private:
  cuda::Stream CurrentStream() const;

  const char* first_ = nullptr;  // the tensor that decided
  Place place_;
  const ExchangeTable* table_ = nullptr;
};

}  // namespace octavo::bindings

template <>
struct nanobind::detail::type_caster<octavo::bindings::Tensor> {
  NB_TYPE_CASTER(octavo::bindings::Tensor, const_name("torch.Tensor"))

  bool from_python(handle source, uint8_t, cleanup_list*) noexcept {
    return octavo::bindings::ReadTensor(source, &value);
  }
};
