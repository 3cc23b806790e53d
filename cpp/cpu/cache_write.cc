#include <cstring>

#include "base/ops_check.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "octavo/ops.h"

namespace octavo::cpu {

Status CacheWrite(const CacheWriteArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  const int64_t heads = a.k.shape[1], head_dim = a.k.shape[2];
  const int64_t size = DTypeSize(a.k.dtype);
  const int64_t block_size = a.cache.shape[3];
  const int64_t* stride = a.cache.stride;
  const int64_t* slot = a.slot.ptr<int64_t>();
  const size_t bytes = static_cast<size_t>(head_dim * size);
  if (heads * head_dim == 0) return Status::Ok();
  ParallelRanges(a.k.shape[0], GrainOfRows(heads * head_dim), NumThreads(),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     if (slot[i] < 0) continue;
                     const int64_t offset =
                         slot[i] / block_size * stride[0] + slot[i] % block_size * stride[3];
                     char* base = a.cache.ptr<char>() + offset * size;
                     for (int64_t h = 0; h < heads; ++h) {
                       char* to = base + h * stride[2] * size;
                       std::memcpy(to, RowOf(a.k, i, h), bytes);
                       std::memcpy(to + stride[1] * size, RowOf(a.v, i, h), bytes);
                     }
                   }
                 });
  return Status::Ok();
}

}  // namespace octavo::cpu
