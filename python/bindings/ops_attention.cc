// Paged attention of octavo._ops, alone and with what stands in front of it, and the plan that its
// CUDA kernels work by.
#include <nanobind/stl/optional.h>

#include "octavo/cuda_attention.h"
#include "octavo/ops.h"
#include "ops_views.h"

namespace octavo::bindings {
namespace {

// What a plan is made for, beside its rows.
struct PlanOptions {
  int64_t max_queries;
  int64_t decode_queries;
  bool fixed_split;
  bool share_prefixes;

  cuda::AttentionOptions Options() const {
    cuda::AttentionOptions o;
    o.max_queries = max_queries;
    o.decode_queries = decode_queries;
    o.fixed_split = fixed_split;
    o.share_prefixes = share_prefixes;
    return o;
  }
};

cuda::AttentionPlan PlanOf(const TensorView& memory, const PlanOptions& options,
                           bool ready = false) {
  if (memory.dtype != DType::kU8 || memory.rank != 1 || !memory.last_dim_contiguous()) {
    throw nb::value_error("plan is no contiguous row of bytes: make it with torch.uint8");
  }
  return {memory.data, memory.shape[0], options.Options(), ready};
}

// The arguments of a call for `tokens` tokens of `heads` heads, of which only the shapes count: q
// need not exist yet when a step is planned. `like` has its dtype, where that is not the cache's.
PagedAttentionArgs ShapesOf(const TensorView& cache, const std::optional<TensorView>& like,
                            int64_t tokens, int64_t heads, int64_t window) {
  if (cache.rank != 5) throw nb::value_error("cache has to be [B, 2, Hk, bs, D]");
  if (cache.dtype == DType::kF8E4M3 && !like.has_value()) {
    throw nb::value_error("like is None: pass a tensor of the queries' dtype beside such a cache");
  }
  PagedAttentionArgs a;
  const DType dtype = like.has_value() ? like->dtype : cache.dtype;
  a.q = TensorView::Dense(cache.data, dtype, {tokens, heads, cache.shape[4]});
  a.out = a.q;
  a.cache = cache;
  a.window = window;
  return a;
}

int64_t AttentionPlanBytes(const Tensor& cache, int64_t tokens, int64_t rows, int64_t heads,
                           int64_t window, int64_t max_queries, int64_t decode_queries,
                           bool fixed_split, bool share_prefixes,
                           const std::optional<Tensor>& like) {
  Call call;
  const TensorView view = call.View("cache", cache);
  PagedAttentionArgs a = ShapesOf(view, call.View("like", like), tokens, heads, window);
  if (!call.cuda()) return 0;
  a.row_slot = TensorView::Dense(nullptr, DType::kI32, {rows});
  a.seq_len = a.row_slot;
  a.query_start = TensorView::Dense(nullptr, DType::kI32, {rows + 1});
  a.block_table = TensorView::Dense(nullptr, DType::kI32, {1, 1});
  int64_t bytes = 0;
  call.RunCuda([&]([[maybe_unused]] cuda::Stream stream) {
#ifdef OCTAVO_HAS_CUDA
    const PlanOptions options{max_queries, decode_queries, fixed_split, share_prefixes};
    const Result<int64_t> need = cuda::AttentionPlanBytes(a, options.Options());
    if (!need.ok()) return need.status();
    bytes = need.value();
#else
    static_cast<void>(max_queries + decode_queries + fixed_split + share_prefixes);
#endif
    return Status::Ok();
  });
  return bytes;
}

void PlanAttention(const Tensor& plan, const Tensor& cache, const Tensor& block_table,
                   const Tensor& row_slot, const Tensor& query_start, const Tensor& seq_len,
                   int64_t tokens, int64_t heads, int64_t window, int64_t max_queries,
                   int64_t decode_queries, bool fixed_split, bool share_prefixes, bool chunked,
                   const std::optional<Tensor>& like) {
  Call call;
  const TensorView view = call.View("cache", cache);
  PagedAttentionArgs a = ShapesOf(view, call.View("like", like), tokens, heads, window);
  a.chunked = chunked;
  a.block_table = call.View("block_table", block_table);
  a.row_slot = call.View("row_slot", row_slot);
  a.query_start = call.View("query_start", query_start);
  a.seq_len = call.View("seq_len", seq_len);
  [[maybe_unused]] const cuda::AttentionPlan p =
      PlanOf(call.View("plan", plan), {max_queries, decode_queries, fixed_split, share_prefixes});
  if (!call.cuda()) return;
  call.RunCuda([&]([[maybe_unused]] cuda::Stream stream) {
#ifdef OCTAVO_HAS_CUDA
    return cuda::PlanPagedAttention(a, p, stream);
#else
    return Status::Ok();
#endif
  });
}

// The tensors of a step's rows.
struct Rows {
  const Tensor& block_table;
  const Tensor& row_slot;
  const Tensor& query_start;
  const Tensor& seq_len;
};

PagedAttentionArgs ArgsOf(Call* call, const Tensor& out, const Tensor& q, const Tensor& cache,
                          const Rows& rows, const std::optional<Tensor>& sinks) {
  PagedAttentionArgs args;
  args.out = call->View("out", out);
  args.q = call->View("q", q);
  args.cache = call->View("cache", cache);
  args.block_table = call->View("block_table", rows.block_table);
  args.row_slot = call->View("row_slot", rows.row_slot);
  args.query_start = call->View("query_start", rows.query_start);
  args.seq_len = call->View("seq_len", rows.seq_len);
  args.sinks = call->View("sinks", sinks);
  return args;
}

void PagedAttention(const Tensor& out, const Tensor& q, const Tensor& cache,
                    const Tensor& block_table, const Tensor& row_slot, const Tensor& query_start,
                    const Tensor& seq_len, float scale, int64_t window, float soft_cap,
                    const std::optional<Tensor>& sinks, const std::optional<Tensor>& plan,
                    int64_t max_queries, int64_t decode_queries, bool fixed_split,
                    bool share_prefixes, bool chunked, float k_scale, float v_scale, bool invariant,
                    bool plan_ready) {
  Call call;
  PagedAttentionArgs args =
      ArgsOf(&call, out, q, cache, {block_table, row_slot, query_start, seq_len}, sinks);
  args.scale = scale;
  args.window = window;
  args.soft_cap = soft_cap;
  args.chunked = chunked;
  args.k_scale = k_scale;
  args.v_scale = v_scale;
  args.invariant = invariant;
#ifdef OCTAVO_HAS_CUDA
  if (call.cuda() && plan.has_value()) {
    const cuda::AttentionPlan p =
        PlanOf(call.View("plan", *plan), {max_queries, decode_queries, fixed_split, share_prefixes},
               plan_ready);
    call.RunCuda([&](cuda::Stream stream) { return cuda::PagedAttention(args, p, stream); });
    return;
  }
#else
  static_cast<void>(plan);
  static_cast<void>(max_queries + decode_queries + fixed_split + share_prefixes + plan_ready);
#endif
  call.Run(cpu::PagedAttention, OCTAVO_CUDA_OP(PagedAttention), args);
}

void NormRopeAttention(const Tensor& out, const Tensor& q, const Tensor& k, const Tensor& v,
                       const Tensor& position, const Tensor& cos_sin, const Tensor& cache,
                       const Tensor& slot, const Tensor& block_table, const Tensor& row_slot,
                       const Tensor& query_start, const Tensor& seq_len, float scale,
                       const std::optional<Tensor>& q_norm, const std::optional<Tensor>& k_norm,
                       float eps, float weight_offset, bool interleaved, int64_t window,
                       float soft_cap, const std::optional<Tensor>& sinks,
                       const std::optional<Tensor>& plan, int64_t max_queries,
                       int64_t decode_queries, bool fixed_split, bool share_prefixes, bool chunked,
                       float k_scale, float v_scale, bool invariant, bool plan_ready) {
  Call call;
  NormRopeAttentionArgs args;
  args.attention =
      ArgsOf(&call, out, q, cache, {block_table, row_slot, query_start, seq_len}, sinks);
  args.attention.scale = scale;
  args.attention.window = window;
  args.attention.soft_cap = soft_cap;
  args.attention.chunked = chunked;
  args.attention.k_scale = k_scale;
  args.attention.v_scale = v_scale;
  args.attention.invariant = invariant;
  args.k = call.View("k", k);
  args.v = call.View("v", v);
  args.position = call.View("position", position);
  args.cos_sin = call.View("cos_sin", cos_sin);
  args.slot = call.View("slot", slot);
  args.q_norm = call.View("q_norm", q_norm);
  args.k_norm = call.View("k_norm", k_norm);
  args.eps = eps;
  args.weight_offset = weight_offset;
  args.interleaved = interleaved;
#ifdef OCTAVO_HAS_CUDA
  if (call.cuda() && plan.has_value()) {
    const cuda::AttentionPlan p =
        PlanOf(call.View("plan", *plan), {max_queries, decode_queries, fixed_split, share_prefixes},
               plan_ready);
    call.RunCuda([&](cuda::Stream stream) { return cuda::NormRopeAttention(args, p, stream); });
    return;
  }
#else
  static_cast<void>(plan);
  static_cast<void>(max_queries + decode_queries + fixed_split + share_prefixes + plan_ready);
#endif
  call.Run(cpu::NormRopeAttention, OCTAVO_CUDA_OP(NormRopeAttention), args);
}

}  // namespace

void BindAttention(nb::module_& m) {
  const auto arg = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("attention_plan_bytes", &AttentionPlanBytes, arg("cache"), nb::arg("tokens"),
        nb::arg("rows"), nb::arg("heads"), nb::arg("window") = 0, nb::arg("max_queries") = 0,
        nb::arg("decode_queries") = 1, nb::arg("fixed_split") = false,
        nb::arg("share_prefixes") = false, arg("like").none() = nb::none());
  m.def("plan_attention", &PlanAttention, arg("plan"), arg("cache"), arg("block_table"),
        arg("row_slot"), arg("query_start"), arg("seq_len"), nb::arg("tokens"), nb::arg("heads"),
        nb::arg("window") = 0, nb::arg("max_queries") = 0, nb::arg("decode_queries") = 1,
        nb::arg("fixed_split") = false, nb::arg("share_prefixes") = false,
        nb::arg("chunked") = false, arg("like").none() = nb::none());
  m.def("paged_attention", &PagedAttention, arg("out"), arg("q"), arg("cache"), arg("block_table"),
        arg("row_slot"), arg("query_start"), arg("seq_len"), nb::arg("scale"),
        nb::arg("window") = 0, nb::arg("soft_cap") = 0.0f, arg("sinks").none() = nb::none(),
        arg("plan").none() = nb::none(), nb::arg("max_queries") = 0, nb::arg("decode_queries") = 1,
        nb::arg("fixed_split") = false, nb::arg("share_prefixes") = false,
        nb::arg("chunked") = false, nb::arg("k_scale") = 1.0f, nb::arg("v_scale") = 1.0f,
        nb::arg("invariant") = false, nb::arg("plan_ready") = false);
  m.def("norm_rope_attention", &NormRopeAttention, arg("out"), arg("q"), arg("k"), arg("v"),
        arg("position"), arg("cos_sin"), arg("cache"), arg("slot"), arg("block_table"),
        arg("row_slot"), arg("query_start"), arg("seq_len"), nb::arg("scale"),
        arg("q_norm").none() = nb::none(), arg("k_norm").none() = nb::none(),
        nb::arg("eps") = 1e-6f, nb::arg("weight_offset") = 0.0f, nb::arg("interleaved") = false,
        nb::arg("window") = 0, nb::arg("soft_cap") = 0.0f, arg("sinks").none() = nb::none(),
        arg("plan").none() = nb::none(), nb::arg("max_queries") = 0, nb::arg("decode_queries") = 1,
        nb::arg("fixed_split") = false, nb::arg("share_prefixes") = false,
        nb::arg("chunked") = false, nb::arg("k_scale") = 1.0f, nb::arg("v_scale") = 1.0f,
        nb::arg("invariant") = false, nb::arg("plan_ready") = false);
}

}  // namespace octavo::bindings
