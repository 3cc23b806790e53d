// Latent attention is attention of many query heads over one key head, so the tiles are those of
// paged attention: the heads of a token, or of a few, against blocks of keys that all of them
// share.
#include <cstring>

#include "base/ops_check.h"
#include "base/ops_parts.h"
#include "cpu/attend_rows.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "octavo/ops_latent.h"

namespace octavo::cpu {

Status LatentCacheWrite(const LatentCacheWriteArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  const int64_t size = DTypeSize(a.cache.dtype), block_size = a.cache.shape[1];
  const int64_t latent = a.latent.shape[1] * size, rope = a.rope.shape[1] * size;
  const int64_t* slot = a.slot.ptr<int64_t>();
  ParallelRanges(
      a.latent.shape[0], GrainOfRows(a.cache.shape[2]), NumThreads(),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          if (slot[i] < 0) continue;
          char* to = static_cast<char*>(RowOf(a.cache, slot[i] / block_size, slot[i] % block_size));
          std::memcpy(to, RowOf(a.latent, i), static_cast<size_t>(latent));
          if (rope > 0) {
            std::memcpy(to + latent, RowOf(a.rope, i), static_cast<size_t>(rope));
          }
        }
      });
  return Status::Ok();
}

Status LatentAttention(const LatentAttentionArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  AttendRows(AttentionOf(a));
  return Status::Ok();
}

}  // namespace octavo::cpu
