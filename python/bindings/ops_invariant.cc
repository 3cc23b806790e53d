// The ops of octavo._ops whose rows never depend on their company.
#include "octavo/ops_invariant.h"

#include <nanobind/stl/optional.h>

#include "octavo/cuda_ops.h"
#include "ops_views.h"

namespace octavo::bindings {
namespace {

void Gemm(const Tensor& out, const Tensor& x, const Tensor& weight,
          const std::optional<Tensor>& bias) {
  Call call;
  const GemmArgs args{call.View("out", out), call.View("x", x), call.View("weight", weight),
                      call.View("bias", bias)};
  call.Run(cpu::Gemm, OCTAVO_CUDA_OP(Gemm), args);
}

void SoftCap(const Tensor& x, float cap) {
  Call call;
  const SoftCapArgs args{call.View("x", x), cap};
  call.Run(cpu::SoftCap, nullptr, args);
}

}  // namespace

void BindInvariant(nb::module_& m) {
  const auto arg = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("gemm", &Gemm, arg("out"), arg("x"), arg("weight"), arg("bias").none() = nb::none());
  m.def("soft_cap", &SoftCap, arg("x"), nb::arg("cap"));
}

}  // namespace octavo::bindings
