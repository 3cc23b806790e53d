// What the ops of latent attention ask of shapes, dtypes and the numbers in index tensors.
#include <cmath>
#include <string>

#include "base/ops_check.h"
#include "base/ops_parts.h"
#include "octavo/ops_latent.h"

namespace octavo {
namespace {

constexpr int64_t kMaxVector = 1024;  // of a token in the cache

Status CheckLatentCache(const char* op, const TensorView& cache, bool written,
                        const OpTensor& like) {
  const OpTensor t{op, "cache", cache, written};
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(t, like));
  OCTAVO_RETURN_IF_ERROR(CheckShape(t, {kAnyExtent, kAnyExtent, kAnyExtent}));
  if (cache.shape[0] > 0 && cache.shape[1] > 0) return Status::Ok();
  return InvalidOp(op, "cache is empty, need at least one block and token");
}

// `latent` of the `width` entries of a vector come first.
Status CheckWidths(const char* op, int64_t latent, int64_t width) {
  if (latent >= 1 && latent <= width && width <= kMaxVector) return Status::Ok();
  return InvalidOp(op, "a vector has " + std::to_string(width) + " entries, " +
                           std::to_string(latent) + " of them latent, need 1 to all of up to " +
                           std::to_string(kMaxVector));
}

}  // namespace

Status Validate(const LatentCacheWriteArgs& a) {
  const char* op = "latent_cache_write";
  const OpTensor latent{op, "latent", a.latent}, rope{op, "rope", a.rope};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(latent));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(rope, latent));
  OCTAVO_RETURN_IF_ERROR(CheckShape(latent, {kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckShape(rope, {a.latent.shape[0], kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckLatentCache(op, a.cache, /*written=*/true, latent));
  const int64_t width = a.latent.shape[1] + a.rope.shape[1];
  OCTAVO_RETURN_IF_ERROR(CheckWidths(op, a.latent.shape[1], width));
  if (a.cache.shape[2] != width) {
    return InvalidOp(op, "latent and rope have " + std::to_string(width) +
                             " entries, need the cache's " + std::to_string(a.cache.shape[2]));
  }
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "slot", a.slot, DType::kI64, a.latent.shape[0]));
  return CheckApart(op, a.cache, {&a.latent, &a.rope, &a.slot});
}

Status Validate(const LatentAttentionArgs& a) {
  const char* op = "latent_attention";
  const OpTensor q{op, "q", a.q}, out{op, "out", a.out, /*written=*/true};
  OCTAVO_RETURN_IF_ERROR(CheckFloat(q));
  OCTAVO_RETURN_IF_ERROR(CheckSameDType(out, q));
  OCTAVO_RETURN_IF_ERROR(CheckShape(q, {kAnyExtent, kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckShape(out, {a.q.shape[0], a.q.shape[1], kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckLatentCache(op, a.cache, /*written=*/false, q));
  OCTAVO_RETURN_IF_ERROR(CheckWidths(op, a.out.shape[2], a.q.shape[2]));
  if (a.q.shape[1] == 0 || a.q.shape[2] != a.cache.shape[2]) {
    return InvalidOp(op, "q has " + std::to_string(a.q.shape[1]) + " heads of " +
                             std::to_string(a.q.shape[2]) + ", need one or more of the cache's " +
                             std::to_string(a.cache.shape[2]));
  }
  const OpTensor table{op, "block_table", a.block_table};
  OCTAVO_RETURN_IF_ERROR(CheckDType(table, DType::kI32));
  OCTAVO_RETURN_IF_ERROR(CheckShape(table, {kAnyExtent, kAnyExtent}));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "row_slot", a.row_slot, DType::kI32, kAnyExtent));
  const int64_t rows = a.row_slot.shape[0];
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "query_start", a.query_start, DType::kI32, rows + 1));
  OCTAVO_RETURN_IF_ERROR(CheckColumn(op, "seq_len", a.seq_len, DType::kI32, rows));
  if (!std::isfinite(a.scale)) {
    return InvalidOp(op, "scale is " + std::to_string(a.scale) + ", need a finite number");
  }
  return CheckApart(op, a.out, {&a.block_table, &a.row_slot, &a.query_start, &a.seq_len});
}

Status ValidateIndices(const LatentCacheWriteArgs& a) {
  return CheckSlots("latent_cache_write", a.slot, a.cache.shape[0] * a.cache.shape[1]);
}

Status ValidateIndices(const LatentAttentionArgs& a) {
  return CheckAttentionIndices("latent_attention", AttentionOf(a));
}

}  // namespace octavo
