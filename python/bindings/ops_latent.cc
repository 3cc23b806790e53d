// The ops of multi-head latent attention of octavo._ops.
#include "octavo/ops_latent.h"

#include "octavo/cuda_layers.h"
#include "ops_views.h"

namespace octavo::bindings {
namespace {

void LatentCacheWrite(const Tensor& latent, const Tensor& rope, const Tensor& cache,
                      const Tensor& slot) {
  Call call;
  const LatentCacheWriteArgs args{call.View("latent", latent), call.View("rope", rope),
                                  call.View("cache", cache), call.View("slot", slot)};
  call.Run(cpu::LatentCacheWrite, OCTAVO_CUDA_OP(LatentCacheWrite), args);
}

void LatentAttention(const Tensor& out, const Tensor& q, const Tensor& cache,
                     const Tensor& block_table, const Tensor& row_slot, const Tensor& query_start,
                     const Tensor& seq_len, float scale) {
  Call call;
  const LatentAttentionArgs args{
      call.View("out", out),           call.View("q", q),
      call.View("cache", cache),       call.View("block_table", block_table),
      call.View("row_slot", row_slot), call.View("query_start", query_start),
      call.View("seq_len", seq_len),   scale};
  call.Run(cpu::LatentAttention, OCTAVO_CUDA_OP(LatentAttention), args);
}

}  // namespace

void BindLatent(nb::module_& m) {
  const auto arg = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("latent_cache_write", &LatentCacheWrite, arg("latent"), arg("rope"), arg("cache"),
        arg("slot"));
  m.def("latent_attention", &LatentAttention, arg("out"), arg("q"), arg("cache"),
        arg("block_table"), arg("row_slot"), arg("query_start"), arg("seq_len"), nb::arg("scale"));
}

}  // namespace octavo::bindings
