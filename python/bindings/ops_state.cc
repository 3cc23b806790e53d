// The ops of recurrent layers over DLPack tensors. Shapes and meaning stand in octavo/ops_state.h.
#include "octavo/ops_state.h"

#include <nanobind/stl/optional.h>

#include "ops_views.h"

namespace octavo::bindings {
namespace {

void StateMapping(const Tensor& source, const Tensor& target, const Tensor& query_start,
                  const Tensor& row_slot, const Tensor& seq_len, const Tensor& block_table,
                  int64_t block_size) {
  const StateMappingArgs args{View("source", source),
                              View("target", target),
                              View("query_start", query_start),
                              View("row_slot", row_slot),
                              View("seq_len", seq_len),
                              View("block_table", block_table),
                              block_size};
  Call(cpu::StateMapping, args);
}

void CausalConv1d(const Tensor& out, const Tensor& x, const Tensor& weight,
                  const std::optional<Tensor>& bias, const Tensor& state, const Tensor& query_start,
                  const Tensor& source, const Tensor& target) {
  CausalConv1dArgs args;
  args.out = View("out", out);
  args.x = View("x", x);
  args.weight = View("weight", weight);
  if (bias.has_value()) args.bias = View("bias", *bias);
  args.state = View("state", state);
  args.query_start = View("query_start", query_start);
  args.source = View("source", source);
  args.target = View("target", target);
  Call(cpu::CausalConv1d, args);
}

void SsmScan(const Tensor& out, const Tensor& x, const Tensor& dt, const Tensor& b, const Tensor& c,
             const Tensor& a_log, const Tensor& dt_bias, const Tensor& skip, const Tensor& state,
             const Tensor& query_start, const Tensor& source, const Tensor& target) {
  const SsmScanArgs args{View("out", out),
                         View("x", x),
                         View("dt", dt),
                         View("b", b),
                         View("c", c),
                         View("a_log", a_log),
                         View("dt_bias", dt_bias),
                         View("skip", skip),
                         View("state", state),
                         View("query_start", query_start),
                         View("source", source),
                         View("target", target)};
  Call(cpu::SsmScan, args);
}

void GatedRmsNorm(const Tensor& out, const Tensor& x, const Tensor& gate, const Tensor& weight,
                  int64_t groups, float eps) {
  const GatedRmsNormArgs args{View("out", out),       View("x", x), View("gate", gate),
                              View("weight", weight), groups,       eps};
  Call(cpu::GatedRmsNorm, args);
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
