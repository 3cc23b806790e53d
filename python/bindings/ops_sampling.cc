// The sampling ops of octavo._ops.
#include "octavo/ops.h"
#include "ops_views.h"

namespace octavo::bindings {
namespace {

void Argmax(const Tensor& token, const Tensor& logits) {
  const ArgmaxArgs args{View("token", token), View("logits", logits)};
  Call(cpu::Argmax, args);
}

}  // namespace

void BindSampling(nb::module_& m) {
  const auto arg = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("argmax", &Argmax, arg("token"), arg("logits"));
}

}  // namespace octavo::bindings
