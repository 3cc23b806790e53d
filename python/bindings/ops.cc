// octavo._ops: the ops over DLPack tensors, on the backend of the device where they lie. No logic;
// shapes and meaning stand in octavo/ops.h.
#include "octavo/ops.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <tuple>

#include "ops_views.h"

namespace octavo::bindings {
namespace {

void RmsNorm(const Tensor& out, const Tensor& x, const Tensor& weight, float eps,
             float weight_offset, bool invariant) {
  Call call;
  const RmsNormArgs args{call.View("out", out), call.View("x", x), call.View("weight", weight), eps,
                         weight_offset,         invariant};
  call.Run(cpu::RmsNorm, OCTAVO_CUDA_OP(RmsNorm), args);
}

void AddRmsNorm(const Tensor& out, const Tensor& x, const Tensor& residual, const Tensor& weight,
                float eps, float weight_offset, bool invariant) {
  Call call;
  const AddRmsNormArgs args{call.View("out", out),
                            call.View("x", x),
                            call.View("residual", residual),
                            call.View("weight", weight),
                            eps,
                            weight_offset,
                            invariant};
  call.Run(cpu::AddRmsNorm, OCTAVO_CUDA_OP(AddRmsNorm), args);
}

void Rope(const Tensor& q, const Tensor& k, const Tensor& position, const Tensor& cos_sin,
          bool interleaved) {
  Call call;
  const RopeArgs args{call.View("q", q), call.View("k", k), call.View("position", position),
                      call.View("cos_sin", cos_sin), interleaved};
  call.Run(cpu::Rope, OCTAVO_CUDA_OP(Rope), args);
}

void SlotMapping(const Tensor& slot, const Tensor& position, const Tensor& query_start,
                 const Tensor& row_slot, const Tensor& block_table, int64_t block_size) {
  Call call;
  const SlotMappingArgs args{call.View("slot", slot),
                             call.View("position", position),
                             call.View("query_start", query_start),
                             call.View("row_slot", row_slot),
                             call.View("block_table", block_table),
                             block_size};
  call.Run(cpu::SlotMapping, OCTAVO_CUDA_OP(SlotMapping), args);
}

void CacheWrite(const Tensor& k, const Tensor& v, const Tensor& cache, const Tensor& slot,
                float k_scale, float v_scale) {
  Call call;
  const CacheWriteArgs args{call.View("k", k),       call.View("v", v), call.View("cache", cache),
                            call.View("slot", slot), k_scale,           v_scale};
  call.Run(cpu::CacheWrite, OCTAVO_CUDA_OP(CacheWrite), args);
}

void NormRopeCache(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& position,
                   const Tensor& cos_sin, const Tensor& cache, const Tensor& slot,
                   const std::optional<Tensor>& q_norm, const std::optional<Tensor>& k_norm,
                   float eps, float weight_offset, bool interleaved, float k_scale, float v_scale) {
  Call call;
  const NormRopeCacheArgs args{call.View("q", q),
                               call.View("k", k),
                               call.View("v", v),
                               call.View("position", position),
                               call.View("cos_sin", cos_sin),
                               call.View("cache", cache),
                               call.View("slot", slot),
                               call.View("q_norm", q_norm),
                               call.View("k_norm", k_norm),
                               eps,
                               weight_offset,
                               interleaved,
                               k_scale,
                               v_scale};
  call.Run(cpu::NormRopeCache, OCTAVO_CUDA_OP(NormRopeCache), args);
}

void FillTokens(const Tensor& token_id, const Tensor& query_start, const Tensor& row_slot,
                const Tensor& last_token) {
  Call call;
  const FillTokensArgs args{call.View("token_id", token_id), call.View("query_start", query_start),
                            call.View("row_slot", row_slot), call.View("last_token", last_token)};
  call.Run(cpu::FillTokens, OCTAVO_CUDA_OP(FillTokens), args);
}

void KeepTokens(const Tensor& last_token, const Tensor& token, const Tensor& sample_row,
                const Tensor& row_slot, const std::optional<Tensor>& landing) {
  Call call;
  const KeepTokensArgs args{call.View("last_token", last_token), call.View("token", token),
                            call.View("sample_row", sample_row), call.View("row_slot", row_slot),
                            call.View("landing", landing)};
  call.Run(cpu::KeepTokens, OCTAVO_CUDA_OP(KeepTokens), args);
}

void SiluMul(const Tensor& out, const Tensor& gate_up) {
  Call call;
  const GatedActivationArgs args{call.View("out", out), call.View("gate_up", gate_up)};
  call.Run(cpu::SiluMul, OCTAVO_CUDA_OP(SiluMul), args);
}

void GeluTanhMul(const Tensor& out, const Tensor& gate_up) {
  Call call;
  const GatedActivationArgs args{call.View("out", out), call.View("gate_up", gate_up)};
  call.Run(cpu::GeluTanhMul, OCTAVO_CUDA_OP(GeluTanhMul), args);
}

Gate GateOf(const std::optional<std::string>& name) {
  if (!name.has_value()) return Gate::kNone;
  if (*name == "silu") return Gate::kSilu;
  if (*name == "gelu_tanh") return Gate::kGeluTanh;
  throw nb::value_error(("linear: gate is '" + *name + "', need silu or gelu_tanh").c_str());
}

using HalfNormTensors = std::tuple<Tensor, float, Tensor, Tensor>;

void Linear(const Tensor& out, const Tensor& x, const Tensor& weight,
            const std::optional<Tensor>& bias, bool weight_ready, const std::optional<Tensor>& norm,
            float eps, float norm_offset, const std::optional<std::string>& gate, bool add,
            const std::optional<Tensor>& squares, const std::optional<HalfNormTensors>& leaves) {
  Call call;
  LinearArgs args{call.View("out", out),
                  call.View("x", x),
                  call.View("weight", weight),
                  call.View("bias", bias),
                  weight_ready,
                  call.View("norm", norm),
                  eps,
                  norm_offset,
                  GateOf(gate),
                  add,
                  call.View("squares", squares)};
  if (leaves.has_value()) {
    const auto& [norm_after, offset, scaled, left] = *leaves;
    args.leaves = HalfNorm{call.View("leaves.weight", norm_after), offset,
                           call.View("leaves.scaled", scaled), call.View("leaves.squares", left)};
  }
  call.Run(cpu::Linear, OCTAVO_CUDA_OP(Linear), args);
}

bool HasCuda() {
#ifdef OCTAVO_HAS_CUDA
  return true;
#else
  return false;
#endif
}

void SetIsa(const std::string& name) { ThrowIfError(cpu::SetIsa(name.c_str())); }

}  // namespace

void BindAttention(nb::module_& m);
void BindInvariant(nb::module_& m);
void BindLatent(nb::module_& m);
void BindMoe(nb::module_& m);
void BindQueue(nb::module_& m);
void BindSampling(nb::module_& m);
void BindState(nb::module_& m);
void BindTables(nb::module_& m);

NB_MODULE(_ops, m) {
  const auto arg = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("rms_norm", &RmsNorm, arg("out"), arg("x"), arg("weight"), nb::arg("eps"),
        nb::arg("weight_offset") = 0.0f, nb::arg("invariant") = false);
  m.def("add_rms_norm", &AddRmsNorm, arg("out"), arg("x"), arg("residual"), arg("weight"),
        nb::arg("eps"), nb::arg("weight_offset") = 0.0f, nb::arg("invariant") = false);
  m.def("rope", &Rope, arg("q"), arg("k"), arg("position"), arg("cos_sin"), nb::arg("interleaved"));
  m.def("slot_mapping", &SlotMapping, arg("slot"), arg("position"), arg("query_start"),
        arg("row_slot"), arg("block_table"), nb::arg("block_size"));
  m.def("cache_write", &CacheWrite, arg("k"), arg("v"), arg("cache"), arg("slot"),
        nb::arg("k_scale") = 1.0f, nb::arg("v_scale") = 1.0f);
  m.def("norm_rope_cache", &NormRopeCache, arg("q"), arg("k"), arg("v"), arg("position"),
        arg("cos_sin"), arg("cache"), arg("slot"), arg("q_norm").none() = nb::none(),
        arg("k_norm").none() = nb::none(), nb::arg("eps") = 1e-6f, nb::arg("weight_offset") = 0.0f,
        nb::arg("interleaved") = false, nb::arg("k_scale") = 1.0f, nb::arg("v_scale") = 1.0f);
  m.def("fill_tokens", &FillTokens, arg("token_id"), arg("query_start"), arg("row_slot"),
        arg("last_token"));
  m.def("keep_tokens", &KeepTokens, arg("last_token"), arg("token"), arg("sample_row"),
        arg("row_slot"), arg("landing").none() = nb::none());
  m.def("silu_mul", &SiluMul, arg("out"), arg("gate_up"));
  m.def("gelu_tanh_mul", &GeluTanhMul, arg("out"), arg("gate_up"));
  m.def("linear", &Linear, arg("out"), arg("x"), arg("weight"), arg("bias").none() = nb::none(),
        nb::arg("weight_ready") = false, arg("norm").none() = nb::none(), nb::arg("eps") = 1e-6f,
        nb::arg("norm_offset") = 0.0f, nb::arg("gate") = nb::none(), nb::arg("add") = false,
        arg("squares").none() = nb::none(), nb::arg("leaves") = nb::none());
  BindAttention(m);
  BindInvariant(m);
  BindLatent(m);
  BindMoe(m);
  BindQueue(m);
  BindSampling(m);
  BindState(m);
  BindTables(m);

  m.def("has_cuda", &HasCuda);
  m.def("set_num_threads", &cpu::SetNumThreads, nb::arg("n"));
  m.def("num_threads", &cpu::NumThreads);
  m.def("thread_backend", &cpu::ThreadBackend);
  m.def("isa", &cpu::Isa);
  m.def("set_isa", &SetIsa, nb::arg("name"));
}

}  // namespace octavo::bindings
