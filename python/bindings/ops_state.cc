// The ops of recurrent layers over DLPack tensors. Shapes and meaning stand in octavo/ops_state.h.
#include "octavo/ops_state.h"

#include <nanobind/stl/optional.h>

#include "octavo/cuda_layers.h"
#include "ops_views.h"

namespace octavo::bindings {
namespace {

void StateMapping(const Tensor& source, const Tensor& target, const Tensor& query_start,
                  const Tensor& row_slot, const Tensor& seq_len, const Tensor& block_table,
                  int64_t block_size) {
  Call call;
  const StateMappingArgs args{call.View("source", source),
                              call.View("target", target),
                              call.View("query_start", query_start),
                              call.View("row_slot", row_slot),
                              call.View("seq_len", seq_len),
                              call.View("block_table", block_table),
                              block_size};
  call.Run(cpu::StateMapping, OCTAVO_CUDA_OP(StateMapping), args);
}

void CausalConv1d(const Tensor& out, const Tensor& x, const Tensor& weight,
                  const std::optional<Tensor>& bias, const Tensor& state, const Tensor& query_start,
                  const Tensor& source, const Tensor& target) {
  Call call;
  CausalConv1dArgs args;
  args.out = call.View("out", out);
  args.x = call.View("x", x);
  args.weight = call.View("weight", weight);
  if (bias.has_value()) args.bias = call.View("bias", *bias);
  args.state = call.View("state", state);
  args.query_start = call.View("query_start", query_start);
  args.source = call.View("source", source);
  args.target = call.View("target", target);
  call.Run(cpu::CausalConv1d, OCTAVO_CUDA_OP(CausalConv1d), args);
}

void SsmScan(const Tensor& out, const Tensor& x, const Tensor& dt, const Tensor& b, const Tensor& c,
             const Tensor& a_log, const Tensor& dt_bias, const Tensor& skip, const Tensor& state,
             const Tensor& query_start, const Tensor& source, const Tensor& target) {
  Call call;
  const SsmScanArgs args{call.View("out", out),
                         call.View("x", x),
                         call.View("dt", dt),
                         call.View("b", b),
                         call.View("c", c),
                         call.View("a_log", a_log),
                         call.View("dt_bias", dt_bias),
                         call.View("skip", skip),
                         call.View("state", state),
                         call.View("query_start", query_start),
                         call.View("source", source),
                         call.View("target", target)};
  call.Run(cpu::SsmScan, OCTAVO_CUDA_OP(SsmScan), args);
}

void GatedRmsNorm(const Tensor& out, const Tensor& x, const Tensor& gate, const Tensor& weight,
                  int64_t groups, float eps) {
  Call call;
  const GatedRmsNormArgs args{call.View("out", out),
                              call.View("x", x),
                              call.View("gate", gate),
                              call.View("weight", weight),
                              groups,
                              eps};
  call.Run(cpu::GatedRmsNorm, OCTAVO_CUDA_OP(GatedRmsNorm), args);
}

}  // namespace

void BindState(nb::module_& m) {
  const auto arg = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("state_mapping", &StateMapping, arg("source"), arg("target"), arg("query_start"),
        arg("row_slot"), arg("seq_len"), arg("block_table"), nb::arg("block_size"));
  m.def("causal_conv1d", &CausalConv1d, arg("out"), arg("x"), arg("weight"), arg("bias").none(),
        arg("state"), arg("query_start"), arg("source"), arg("target"));
  m.def("ssm_scan", &SsmScan, arg("out"), arg("x"), arg("dt"), arg("b"), arg("c"), arg("a_log"),
        arg("dt_bias"), arg("skip"), arg("state"), arg("query_start"), arg("source"),
        arg("target"));
  m.def("gated_rms_norm", &GatedRmsNorm, arg("out"), arg("x"), arg("gate"), arg("weight"),
        nb::arg("groups"), nb::arg("eps"));
}

}  // namespace octavo::bindings
