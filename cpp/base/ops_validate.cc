// What every op asks of its arguments' shapes, dtypes and strides, for all backends alike.
#include <cmath>
#include <string>

#include "base/ops_check.h"
#include "base/ops_parts.h"
#include "octavo/ops.h"

namespace octavo {
namespace {

constexpr int64_t kMaxHeadDim = 256;
constexpr int64_t kHeadDimStep = 8;

Status CheckEps(const char* op, float eps) {
  if (eps >= 0.0f && !std::isinf(eps)) return Status::Ok();
  return InvalidOp(op, "eps is " + std::to_string(eps) + ", need a finite number >= 0");
}

// What a norm of the rows of `x` multiplies by.
Status CheckNormWeight(const OpTensor& weight, const OpTensor& x, float eps) {
  const int64_t n = x.view.shape[x.view.rank - 1];
  OCTAVO_RETURN_IF_ERROR(CheckShape(weight, {n}));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(weight, x));
  if (n == 0) return InvalidOp(x.op, "x has an empty last dimension, need at least 1");
  return CheckEps(x.op, eps);
}

Status CheckNorm(const char* op, const TensorView& out, const TensorView& x,
                 const TensorView& weight, float eps, bool heads_allowed) {
  const OpTensor tx{op, "x", x};
  const OpTensor tout{op, "out", out, /*written=*/true};
  const OpTensor tweight{op, "weight", weight};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(tx));
  if (heads_allowed && x.rank == 3) {
    OCTAVO_RETURN_IF_ERROR(CheckShape(tx, {kAnyExtent, kAnyExtent, kAnyExtent}));
    OCTAVO_RETURN_IF_ERROR(CheckShape(tout, {x.shape[0], x.shape[1], x.shape[2]}));
  } else {
    OCTAVO_RETURN_IF_ERROR(CheckShape(tx, {kAnyExtent, kAnyExtent}));
    OCTAVO_RETURN_IF_ERROR(CheckShape(tout, {x.shape[0], x.shape[1]}));
  }
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(tout, tx));
  return CheckNormWeight(tweight, tx, eps);
}

// A one-dimensional tensor of `n` elements of `dtype`.
Status CheckRows(const char* op, const TensorView& row_slot, const TensorView& query_start,
                 const TensorView& block_table) {
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "row_slot", row_slot, DType::kI32, kAnyExtent));
  OCTAVO_RETURN_IF_ERROR(
      CheckColumn(op, "query_start", query_start, DType::kI32, row_slot.shape[0] + 1));
  const OpTensor table{op, "block_table", block_table};
  OCTAVO_RETURN_IF_ERROR(CheckDType(table, DType::kI32));
  return CheckShape(table, {kAnyExtent, kAnyExtent});
}

Status CheckCache(const char* op, const TensorView& cache, bool written, const OpTensor& like) {
  const OpTensor t{op, "cache", cache, written};
  if (cache.dtype != DType::kF8E4M3) OCTAVO_RETURN_IF_ERROR(CheckSameDType(t, like));
  OCTAVO_RETURN_IF_ERROR(
      CheckShape(t, {kAnyExtent, 2, kAnyExtent, kAnyExtent, like.view.shape[2]}));
  if (cache.shape[0] == 0 || cache.shape[2] == 0 || cache.shape[3] == 0) {
    return InvalidOp(op, "cache is empty, need at least one block, head and token");
  }
  return Status::Ok();
}

Status CheckScale(const char* op, const char* name, float scale, const TensorView& cache) {
  const auto fault = [&](const char* need) {
    return InvalidOp(op, std::string(name) + " is " + std::to_string(scale) + ", need " + need);
  };
  if (!(scale > 0.0f) || std::isinf(scale)) return fault("a finite number above 0");
  if (scale != 1.0f && cache.dtype != DType::kF8E4M3) {
    return fault("1: only a cache of float8_e4m3 is scaled");
  }
  return Status::Ok();
}

}  // namespace

Status Validate(const RmsNormArgs& a) {
  return CheckNorm("rms_norm", a.out, a.x, a.weight, a.eps, /*heads_allowed=*/true);
}

Status Validate(const AddRmsNormArgs& a) {
  const char* op = "add_rms_norm";
  OCTAVO_RETURN_IF_ERROR(CheckNorm(op, a.out, a.x, a.weight, a.eps, /*heads_allowed=*/false));
  const OpTensor x{op, "x", a.x};
  const OpTensor residual{op, "residual", a.residual, /*written=*/true};
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(residual, x));
  OCTAVO_RETURN_IF_ERROR(CheckShape(residual, {a.x.shape[0], a.x.shape[1]}));
  if (a.x.shape[0] > 0 && (a.residual.data == a.x.data || a.residual.data == a.out.data)) {
    return InvalidOp(op, "residual shares memory with x or out: pass memory of its own");
  }
  return Status::Ok();
}

Status Validate(const RopeArgs& a) {
  const char* op = "rope";
  const OpTensor q{op, "q", a.q, /*written=*/true};
  const OpTensor k{op, "k", a.k, /*written=*/true};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(q));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(k, q));
  OCTAVO_RETURN_IF_ERROR(CheckShape(q, {kAnyExtent, kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckShape(k, {a.q.shape[0], kAnyExtent, a.q.shape[2]}));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "position", a.position, DType::kI32, a.q.shape[0]));
  const OpTensor table{op, "cos_sin", a.cos_sin};
  OCTAVO_RETURN_IF_ERROR(CheckDType(table, DType::kF32));
  OCTAVO_RETURN_IF_ERROR(CheckShape(table, {kAnyExtent, kAnyExtent}));
  const int64_t rotary = a.cos_sin.shape[1];
  if (rotary % 2 != 0 || rotary > a.q.shape[2]) {
    return InvalidOp(op, "cos_sin has " + std::to_string(rotary) +
                             " columns, need an even number <= the head dim " +
                             std::to_string(a.q.shape[2]));
  }
  OCTAVO_RETURN_IF_ERROR(CheckApart(op, a.q, {&a.position}));
  return CheckApart(op, a.k, {&a.position});
}

Status Validate(const SlotMappingArgs& a) {
  const char* op = "slot_mapping";
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "position", a.position, DType::kI32, kAnyExtent));
  OCTAVO_RETURN_IF_ERROR(
      CheckColumn(op, "slot", a.slot, DType::kI64, a.position.shape[0], /*written=*/true));
  OCTAVO_RETURN_IF_ERROR(CheckRows(op, a.row_slot, a.query_start, a.block_table));
  OCTAVO_RETURN_IF_ERROR(CheckBlockSize(op, a.block_size));
  return CheckApart(op, a.slot, {&a.position, &a.query_start, &a.row_slot, &a.block_table});
}

Status Validate(const CacheWriteArgs& a) {
  const char* op = "cache_write";
  const OpTensor k{op, "k", a.k};
  const OpTensor v{op, "v", a.v};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(k));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(v, k));
  OCTAVO_RETURN_IF_ERROR(CheckShape(k, {kAnyExtent, kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckShape(v, {a.k.shape[0], a.k.shape[1], a.k.shape[2]}));
  OCTAVO_RETURN_IF_ERROR(CheckCache(op, a.cache, /*written=*/true, k));
  if (a.cache.shape[2] != a.k.shape[1]) {
    return InvalidOp(op, "k has " + std::to_string(a.k.shape[1]) + " heads, need the cache's " +
                             std::to_string(a.cache.shape[2]));
  }
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "slot", a.slot, DType::kI64, a.k.shape[0]));
  OCTAVO_RETURN_IF_ERROR(CheckScale(op, "k_scale", a.k_scale, a.cache));
  OCTAVO_RETURN_IF_ERROR(CheckScale(op, "v_scale", a.v_scale, a.cache));
  return CheckApart(op, a.cache, {&a.k, &a.v, &a.slot});
}

Status Validate(const NormRopeCacheArgs& a) {
  if (a.q_norm.has_value() != a.k_norm.has_value()) {
    return InvalidOp("norm_rope_cache",
                     "one of q_norm and k_norm is missing: give both or neither");
  }
  if (a.q_norm.has_value()) {
    OCTAVO_RETURN_IF_ERROR(Validate(NormOf(a, a.q, *a.q_norm)));
    OCTAVO_RETURN_IF_ERROR(Validate(NormOf(a, a.k, *a.k_norm)));
  }
  OCTAVO_RETURN_IF_ERROR(Validate(RopeOf(a)));
  OCTAVO_RETURN_IF_ERROR(Validate(CacheWriteOf(a)));
  for (const TensorView* out : {&a.q, &a.k, &a.cache}) {
    OCTAVO_RETURN_IF_ERROR(CheckApart("norm_rope_cache", *out, {&a.position, &a.slot}));
  }
  return Status::Ok();
}

Status Validate(const PagedAttentionArgs& a) {
  const char* op = "paged_attention";
  const OpTensor q{op, "q", a.q};
  const OpTensor out{op, "out", a.out, /*written=*/true};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(q));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(out, q));
  OCTAVO_RETURN_IF_ERROR(CheckShape(q, {kAnyExtent, kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckShape(out, {a.q.shape[0], a.q.shape[1], a.q.shape[2]}));
  OCTAVO_RETURN_IF_ERROR(CheckCache(op, a.cache, /*written=*/false, q));
  OCTAVO_RETURN_IF_ERROR(CheckRows(op, a.row_slot, a.query_start, a.block_table));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "seq_len", a.seq_len, DType::kI32, a.row_slot.shape[0]));
  const int64_t head_dim = a.q.shape[2];
  if (head_dim < kHeadDimStep || head_dim > kMaxHeadDim || head_dim % kHeadDimStep != 0) {
    return InvalidOp(op, "the head dim is " + std::to_string(head_dim) + ", need a multiple of " +
                             std::to_string(kHeadDimStep) + " up to " +
                             std::to_string(kMaxHeadDim));
  }
  if (a.q.shape[1] == 0 || a.q.shape[1] % a.cache.shape[2] != 0) {
    return InvalidOp(op, "q has " + std::to_string(a.q.shape[1]) +
                             " heads, need a multiple of the cache's " +
                             std::to_string(a.cache.shape[2]));
  }
  if (!std::isfinite(a.scale)) {
    return InvalidOp(op, "scale is " + std::to_string(a.scale) + ", need a finite number");
  }
  OCTAVO_RETURN_IF_ERROR(CheckScale(op, "k_scale", a.k_scale, a.cache));
  OCTAVO_RETURN_IF_ERROR(CheckScale(op, "v_scale", a.v_scale, a.cache));
  if (a.window < 0) {
    return InvalidOp(op, "window is " + std::to_string(a.window) + ", need 0 (off) or more");
  }
  if (a.chunked && a.window == 0) {
    return InvalidOp(op, "window is 0, need the length of a chunk where chunked is set");
  }
  if (!(a.soft_cap >= 0.0f) || std::isinf(a.soft_cap)) {
    return InvalidOp(op, "soft_cap is " + std::to_string(a.soft_cap) + ", need 0 (off) or more");
  }
  OCTAVO_RETURN_IF_ERROR(
      CheckApart(op, a.out, {&a.block_table, &a.row_slot, &a.query_start, &a.seq_len}));
  if (!a.sinks.has_value()) return Status::Ok();
  return CheckColumn(op, "sinks", *a.sinks, DType::kF32, a.q.shape[1]);
}

Status Validate(const NormRopeAttentionArgs& a) {
  const char* op = "norm_rope_attention";
  const PagedAttentionArgs& p = a.attention;
  OCTAVO_RETURN_IF_ERROR(Validate(NormRopeCacheOf(a)));
  OCTAVO_RETURN_IF_ERROR(Validate(p));
  for (const TensorView* out : {&p.q, &a.k, &p.cache}) {
    OCTAVO_RETURN_IF_ERROR(
        CheckApart(op, *out, {&p.block_table, &p.row_slot, &p.query_start, &p.seq_len}));
  }
  // A backend that does it in one pass writes a row's out while it reads another's q.
  return CheckApart(op, p.out, {&p.q, &a.k, &a.v, &a.position, &a.slot});
}

Status Validate(const GatedActivationArgs& a) {
  const char* op = "gated activation";
  const OpTensor out{op, "out", a.out, /*written=*/true};
  const OpTensor gate_up{op, "gate_up", a.gate_up};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(gate_up));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(out, gate_up));
  OCTAVO_RETURN_IF_ERROR(CheckShape(out, {kAnyExtent, kAnyExtent}));
  return CheckShape(gate_up, {a.out.shape[0], 2 * a.out.shape[1]});
}

Status CheckProduct(const char* op, const TensorView& out, const TensorView& x,
                    const TensorView& weight, const std::optional<TensorView>& bias, bool gated) {
  const OpTensor tx{op, "x", x};
  const OpTensor tout{op, "out", out, /*written=*/true};
  const OpTensor tweight{op, "weight", weight};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(tx));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(tout, tx));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(tweight, tx));
  OCTAVO_RETURN_IF_ERROR(CheckShape(tx, {kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckShape(tweight, {kAnyExtent, x.shape[1]}));
  const int64_t rows = weight.shape[0];
  if (gated && rows % 2 != 0) {
    return InvalidOp(op, "weight has " + std::to_string(rows) +
                             " rows, need as many of the gate as of what it opens");
  }
  OCTAVO_RETURN_IF_ERROR(CheckShape(tout, {x.shape[0], gated ? rows / 2 : rows}));
  if (out.data != nullptr && (out.data == x.data || out.data == weight.data)) {
    return InvalidOp(op, "out shares memory with x or weight, need a tensor of its own");
  }
  if (!bias.has_value()) return Status::Ok();
  const OpTensor tbias{op, "bias", *bias};
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(tbias, tx));
  return CheckShape(tbias, {rows});
}

namespace {

// In float16 a row times a norm's weight may be infinite where the norm is not.
Status CheckHalfNormDType(const LinearArgs& a) {
  if (a.x.dtype != DType::kF16) return Status::Ok();
  return InvalidOp("linear", "x is float16, which may not hold half of a norm: norm x before");
}

Status CheckSquares(const LinearArgs& a, const TensorView& squares, int64_t columns, bool written) {
  const OpTensor t{"linear", "squares", squares, written};
  OCTAVO_RETURN_IF_ERROR(CheckDType(t, DType::kF32));
  return CheckShape(t, {a.x.shape[0], SquaresOf(columns)});
}

Status CheckScaledInput(const LinearArgs& a) {
  OCTAVO_RETURN_IF_ERROR(CheckHalfNormDType(a));
  OCTAVO_RETURN_IF_ERROR(CheckSquares(a, *a.squares, a.x.shape[1], /*written=*/false));
  if (a.norm.has_value()) {
    return InvalidOp("linear", "both norm and squares are given: squares are of a norm's input");
  }
  return CheckEps("linear", a.eps);
}

Status CheckHalfNorm(const LinearArgs& a) {
  const char* op = "linear";
  const HalfNorm& half = *a.leaves;
  OCTAVO_RETURN_IF_ERROR(CheckHalfNormDType(a));
  if (a.gate != Gate::kNone) return InvalidOp(op, "leaves is given with a gate: leave out one");
  const int64_t n = a.out.shape[1];
  OCTAVO_RETURN_IF_ERROR(CheckShape({op, "leaves.weight", half.weight}, {n}));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType({op, "leaves.weight", half.weight}, {op, "x", a.x}));
  const OpTensor scaled{op, "leaves.scaled", half.scaled, /*written=*/true};
  OCTAVO_RETURN_IF_ERROR(CheckShape(scaled, {a.x.shape[0], n}));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(scaled, {op, "x", a.x}));
  OCTAVO_RETURN_IF_ERROR(CheckSquares(a, half.squares, n, /*written=*/true));
  if (a.squares.has_value()) OCTAVO_RETURN_IF_ERROR(CheckApart(op, half.squares, {&*a.squares}));
  return CheckApart(op, half.scaled, {&a.out, &a.x});
}

}  // namespace

Status Validate(const LinearArgs& a) {
  const char* op = "linear";
  OCTAVO_RETURN_IF_ERROR(CheckProduct(op, a.out, a.x, a.weight, a.bias, a.gate != Gate::kNone));
  if (a.squares.has_value()) OCTAVO_RETURN_IF_ERROR(CheckScaledInput(a));
  if (a.leaves.has_value()) OCTAVO_RETURN_IF_ERROR(CheckHalfNorm(a));
  if (!a.norm.has_value()) return Status::Ok();
  return CheckNormWeight({op, "norm", *a.norm}, {op, "x", a.x}, a.eps);
}

Status Validate(const FillTokensArgs& a) {
  const char* op = "fill_tokens";
  OCTAVO_RETURN_IF_ERROR(
      CheckColumn(op, "token_id", a.token_id, DType::kI32, kAnyExtent, /*written=*/true));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "row_slot", a.row_slot, DType::kI32, kAnyExtent));
  OCTAVO_RETURN_IF_ERROR(
      CheckColumn(op, "query_start", a.query_start, DType::kI32, a.row_slot.shape[0] + 1));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "last_token", a.last_token, DType::kI32, kAnyExtent));
  return CheckApart(op, a.token_id, {&a.query_start, &a.row_slot});
}

Status Validate(const KeepTokensArgs& a) {
  const char* op = "keep_tokens";
  OCTAVO_RETURN_IF_ERROR(
      CheckColumn(op, "last_token", a.last_token, DType::kI32, kAnyExtent, /*written=*/true));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "token", a.token, DType::kI32, kAnyExtent));
  OCTAVO_RETURN_IF_ERROR(
      CheckColumn(op, "sample_row", a.sample_row, DType::kI32, a.token.shape[0]));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "row_slot", a.row_slot, DType::kI32, kAnyExtent));
  if (a.landing.has_value()) {
    OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "landing", *a.landing, DType::kI64, 1));
    OCTAVO_RETURN_IF_ERROR(CheckApart(op, a.last_token, {&*a.landing}));
  }
  return CheckApart(op, a.last_token, {&a.sample_row, &a.row_slot});
}

namespace {

Status CheckLogits(const char* op, const TensorView& logits, bool written) {
  const OpTensor t{op, "logits", logits, written};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(t));
  OCTAVO_RETURN_IF_ERROR(CheckShape(t, {kAnyExtent, kAnyExtent}));
  if (logits.shape[1] == 0 || logits.shape[1] > INT32_MAX) {
    return InvalidOp(op, "logits has a vocabulary of " + std::to_string(logits.shape[1]) +
                             ", need 1 to 2147483647");
  }
  return Status::Ok();
}

}  // namespace

Status Validate(const ArgmaxArgs& a) {
  OCTAVO_RETURN_IF_ERROR(CheckLogits("argmax", a.logits, /*written=*/false));
  return CheckColumn("argmax", "token", a.token, DType::kI32, a.logits.shape[0], /*written=*/true);
}

Status Validate(const SampleArgs& a) {
  const char* op = "sample";
  OCTAVO_RETURN_IF_ERROR(CheckLogits(op, a.logits, /*written=*/true));
  const int64_t s = a.logits.shape[0];
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "token", a.token, DType::kI32, s, /*written=*/true));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "temperature", a.temperature, DType::kF32, s));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "top_k", a.top_k, DType::kI32, s));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "top_p", a.top_p, DType::kF32, s));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "min_p", a.min_p, DType::kF32, s));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "presence", a.presence, DType::kF32, s));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "frequency", a.frequency, DType::kF32, s));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "repetition", a.repetition, DType::kF32, s));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "seed", a.seed, DType::kU64, s));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "sample_index", a.sample_index, DType::kI64, s));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "bias_start", a.bias_start, DType::kI32, s + 1));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "bias_token", a.bias_token, DType::kI32, kAnyExtent));
  OCTAVO_RETURN_IF_ERROR(
      CheckColumn(op, "bias_value", a.bias_value, DType::kF32, a.bias_token.shape[0]));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "history", a.history, DType::kU64, s));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "history_len", a.history_len, DType::kI32, s));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "prompt_len", a.prompt_len, DType::kI32, s));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "mask", a.mask, DType::kU64, s));
  const auto apart = [&](const TensorView& out) {
    return CheckApart(
        op, out,
        {&a.bias_start, &a.bias_token, &a.history, &a.history_len, &a.prompt_len, &a.mask});
  };
  OCTAVO_RETURN_IF_ERROR(apart(a.token));
  if (a.logits.dtype == DType::kF32) return apart(a.logits);
  if (!a.scratch.has_value()) {
    return InvalidOp(op, "scratch is missing, need float32 rows to edit logits of 16 bits in");
  }
  const OpTensor scratch{op, "scratch", *a.scratch, /*written=*/true};
  OCTAVO_RETURN_IF_ERROR(CheckDType(scratch, DType::kF32));
  OCTAVO_RETURN_IF_ERROR(CheckShape(scratch, {s, a.logits.shape[1]}));
  OCTAVO_RETURN_IF_ERROR(CheckApart(op, *a.scratch, {&a.logits}));
  return apart(*a.scratch);
}

Status Validate(const LogprobsArgs& a) {
  const char* op = "logprobs";
  OCTAVO_RETURN_IF_ERROR(CheckDType({op, "logits", a.logits}, DType::kF32));
  OCTAVO_RETURN_IF_ERROR(CheckLogits(op, a.logits, /*written=*/false));
  const int64_t s = a.logits.shape[0];
  if (a.k < 0 || a.k > a.logits.shape[1]) {
    return InvalidOp(op, "k is " + std::to_string(a.k) + ", need 0 to the vocabulary's " +
                             std::to_string(a.logits.shape[1]));
  }
  const OpTensor ids{op, "ids", a.ids, /*written=*/true};
  const OpTensor values{op, "values", a.values, /*written=*/true};
  OCTAVO_RETURN_IF_ERROR(CheckDType(ids, DType::kI32));
  OCTAVO_RETURN_IF_ERROR(CheckShape(ids, {s, a.k + 1}));
  OCTAVO_RETURN_IF_ERROR(CheckDType(values, DType::kF32));
  OCTAVO_RETURN_IF_ERROR(CheckShape(values, {s, a.k + 1}));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "rank", a.rank, DType::kI32, s, /*written=*/true));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "token", a.token, DType::kI32, s));
  for (const TensorView* out : {&a.ids, &a.values, &a.rank}) {
    OCTAVO_RETURN_IF_ERROR(CheckApart(op, *out, {&a.token}));
  }
  return Status::Ok();
}

}  // namespace octavo
