// The ops of a mixture of experts of octavo._ops.
#include "octavo/ops_moe.h"

#include <nanobind/stl/optional.h>

#include "octavo/cuda_layers.h"
#include "ops_views.h"

namespace octavo::bindings {
namespace {

void MoeRoute(const Tensor& ids, const Tensor& weights, const Tensor& logits, bool sigmoid,
              bool renormalize, const std::optional<Tensor>& bias, int64_t groups,
              int64_t top_groups, int64_t group_best, float scale) {
  Call call;
  const MoeRouteArgs args{call.View("ids", ids),
                          call.View("weights", weights),
                          call.View("logits", logits),
                          sigmoid,
                          renormalize,
                          call.View("bias", bias),
                          groups,
                          top_groups,
                          group_best,
                          scale};
  call.Run(cpu::MoeRoute, OCTAVO_CUDA_OP(MoeRoute), args);
}

void MoeGroup(const Tensor& place, const Tensor& token, const Tensor& start, const Tensor& ids) {
  Call call;
  const MoeGroupArgs args{call.View("place", place), call.View("token", token),
                          call.View("start", start), call.View("ids", ids)};
  call.Run(cpu::MoeGroup, OCTAVO_CUDA_OP(MoeGroup), args);
}

void GroupedLinear(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& start,
                   const std::optional<Tensor>& bias) {
  Call call;
  const GroupedLinearArgs args{call.View("out", out), call.View("x", x),
                               call.View("weight", weight), call.View("start", start),
                               call.View("bias", bias)};
  call.Run(cpu::GroupedLinear, OCTAVO_CUDA_OP(GroupedLinear), args);
}

void MoeCombine(const Tensor& out, const Tensor& rows, const Tensor& place, const Tensor& weights) {
  Call call;
  const MoeCombineArgs args{call.View("out", out), call.View("rows", rows),
                            call.View("place", place), call.View("weights", weights)};
  call.Run(cpu::MoeCombine, OCTAVO_CUDA_OP(MoeCombine), args);
}

void ClampedSwiglu(const Tensor& out, const Tensor& gate_up, float alpha, float limit) {
  Call call;
  const ClampedSwigluArgs args{call.View("out", out), call.View("gate_up", gate_up), alpha, limit};
  call.Run(cpu::ClampedSwiglu, OCTAVO_CUDA_OP(ClampedSwiglu), args);
}

}  // namespace

void BindMoe(nb::module_& m) {
  const auto arg = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("moe_route", &MoeRoute, arg("ids"), arg("weights"), arg("logits"), nb::arg("sigmoid"),
        nb::arg("renormalize"), arg("bias").none() = nb::none(), nb::arg("groups") = 1,
        nb::arg("top_groups") = 1, nb::arg("group_best") = 1, nb::arg("scale") = 1.0f);
  m.def("moe_group", &MoeGroup, arg("place"), arg("token"), arg("start"), arg("ids"));
  m.def("grouped_linear", &GroupedLinear, arg("out"), arg("x"), arg("weight"), arg("start"),
        arg("bias").none() = nb::none());
  m.def("moe_combine", &MoeCombine, arg("out"), arg("rows"), arg("place"), arg("weights"));
  m.def("clamped_swiglu", &ClampedSwiglu, arg("out"), arg("gate_up"), nb::arg("alpha"),
        nb::arg("limit"));
}

}  // namespace octavo::bindings
