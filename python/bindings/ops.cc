// octavo._ops: the CPU ops over DLPack tensors. No logic; shapes and meaning stand in octavo/ops.h.
#include "octavo/ops.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "ops_views.h"

namespace octavo::bindings {
namespace {

void RmsNorm(const Tensor& out, const Tensor& x, const Tensor& weight, float eps,
             float weight_offset) {
  const RmsNormArgs args{View("out", out), View("x", x), View("weight", weight), eps,
                         weight_offset};
  Call(cpu::RmsNorm, args);
}

void AddRmsNorm(const Tensor& out, const Tensor& x, const Tensor& residual, const Tensor& weight,
                float eps, float weight_offset) {
  const AddRmsNormArgs args{View("out", out),       View("x", x), View("residual", residual),
                            View("weight", weight), eps,          weight_offset};
  Call(cpu::AddRmsNorm, args);
}

void Rope(const Tensor& q, const Tensor& k, const Tensor& position, const Tensor& cos_sin,
          bool interleaved) {
  const RopeArgs args{View("q", q), View("k", k), View("position", position),
                      View("cos_sin", cos_sin), interleaved};
  Call(cpu::Rope, args);
}

void SlotMapping(const Tensor& slot, const Tensor& position, const Tensor& query_start,
                 const Tensor& row_slot, const Tensor& block_table, int64_t block_size) {
  const SlotMappingArgs args{View("slot", slot),
                             View("position", position),
                             View("query_start", query_start),
                             View("row_slot", row_slot),
                             View("block_table", block_table),
                             block_size};
  Call(cpu::SlotMapping, args);
}

void CacheWrite(const Tensor& k, const Tensor& v, const Tensor& cache, const Tensor& slot) {
  const CacheWriteArgs args{View("k", k), View("v", v), View("cache", cache), View("slot", slot)};
  Call(cpu::CacheWrite, args);
}

void PagedAttention(const Tensor& out, const Tensor& q, const Tensor& cache,
                    const Tensor& block_table, const Tensor& row_slot, const Tensor& query_start,
                    const Tensor& seq_len, float scale, int64_t window, float soft_cap,
                    const std::optional<Tensor>& sinks) {
  PagedAttentionArgs args;
  args.out = View("out", out);
  args.q = View("q", q);
  args.cache = View("cache", cache);
  args.block_table = View("block_table", block_table);
  args.row_slot = View("row_slot", row_slot);
  args.query_start = View("query_start", query_start);
  args.seq_len = View("seq_len", seq_len);
  args.scale = scale;
  args.window = window;
  args.soft_cap = soft_cap;
  if (sinks.has_value()) args.sinks = View("sinks", *sinks);
  Call(cpu::PagedAttention, args);
}

void SiluMul(const Tensor& out, const Tensor& gate_up) {
  const GatedActivationArgs args{View("out", out), View("gate_up", gate_up)};
  Call(cpu::SiluMul, args);
}

void GeluTanhMul(const Tensor& out, const Tensor& gate_up) {
  const GatedActivationArgs args{View("out", out), View("gate_up", gate_up)};
  Call(cpu::GeluTanhMul, args);
}

void Linear(const Tensor& out, const Tensor& x, const Tensor& weight,
            const std::optional<Tensor>& bias) {
  LinearArgs args{View("out", out), View("x", x), View("weight", weight), std::nullopt};
  if (bias.has_value()) args.bias = View("bias", *bias);
  Call(cpu::Linear, args);
}

void SetIsa(const std::string& name) { ThrowIfError(cpu::SetIsa(name.c_str())); }

}  // namespace

void BindSampling(nb::module_& m);
void BindState(nb::module_& m);

NB_MODULE(_ops, m) {
  const auto arg = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("rms_norm", &RmsNorm, arg("out"), arg("x"), arg("weight"), nb::arg("eps"),
        nb::arg("weight_offset") = 0.0f);
  m.def("add_rms_norm", &AddRmsNorm, arg("out"), arg("x"), arg("residual"), arg("weight"),
        nb::arg("eps"), nb::arg("weight_offset") = 0.0f);
  m.def("rope", &Rope, arg("q"), arg("k"), arg("position"), arg("cos_sin"), nb::arg("interleaved"));
  m.def("slot_mapping", &SlotMapping, arg("slot"), arg("position"), arg("query_start"),
        arg("row_slot"), arg("block_table"), nb::arg("block_size"));
  m.def("cache_write", &CacheWrite, arg("k"), arg("v"), arg("cache"), arg("slot"));
  m.def("paged_attention", &PagedAttention, arg("out"), arg("q"), arg("cache"), arg("block_table"),
        arg("row_slot"), arg("query_start"), arg("seq_len"), nb::arg("scale"),
        nb::arg("window") = 0, nb::arg("soft_cap") = 0.0f, arg("sinks").none() = nb::none());
  m.def("silu_mul", &SiluMul, arg("out"), arg("gate_up"));
  m.def("gelu_tanh_mul", &GeluTanhMul, arg("out"), arg("gate_up"));
  m.def("linear", &Linear, arg("out"), arg("x"), arg("weight"), arg("bias").none() = nb::none());
  BindSampling(m);
  BindState(m);

  m.def("set_num_threads", &cpu::SetNumThreads, nb::arg("n"));
  m.def("num_threads", &cpu::NumThreads);
  m.def("thread_backend", &cpu::ThreadBackend);
  m.def("isa", &cpu::Isa);
  m.def("set_isa", &SetIsa, nb::arg("name"));
}

}  // namespace octavo::bindings
