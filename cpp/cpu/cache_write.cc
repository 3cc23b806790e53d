#include <cstring>

#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "octavo/ops.h"

namespace octavo::cpu {
namespace {

// One head's K or V of a token, as the cache holds it.
struct RowStore {
  const Kernels& kernels;
  DType from;
  DType to;
  int64_t n;

  void operator()(void* out, const void* x, float scale) const {
    if (to == DType::kF8E4M3) {
      kernels.quantize(from, out, x, n, scale);
    } else {
      std::memcpy(out, x, static_cast<size_t>(n * DTypeSize(to)));
    }
  }
};

}  // namespace

Status CacheWrite(const CacheWriteArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  const int64_t heads = a.k.shape[1], head_dim = a.k.shape[2];
  const int64_t size = DTypeSize(a.cache.dtype);
  const int64_t block_size = a.cache.shape[3];
  const int64_t* stride = a.cache.stride;
  const int64_t* slot = a.slot.ptr<int64_t>();
  const RowStore store{ActiveKernels(), a.k.dtype, a.cache.dtype, head_dim};
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
                       store(to, RowOf(a.k, i, h), a.k_scale);
                       store(to + stride[1] * size, RowOf(a.v, i, h), a.v_scale);
                     }
                   }
                 });
  return Status::Ok();
}

}  // namespace octavo::cpu
