// out[block, K/V, head, place, :] = k or v[token, head, :] with block = slot / bs, place = slot %
// bs.
//
// Shapes: k, v [N, Hk, D]; cache [B, 2, Hk, bs, D]; slot [N] int64. float32, bfloat16 and float16
// alike: only bytes move. Into a cache of e4m3 goes what is left of x / scale. Grid: one thread
// copies one unit (16 bytes where every row is aligned to that, else one element) of K or of V; a
// block covers whole tokens, kThreads / (units of a token) of them. Bound by bytes: reads and
// writes 2 * N * Hk * D elements.
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "common/e4m3.cuh"
#include "common/element.cuh"
#include "common/launch.h"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;
static_assert(sizeof(uint4) == kWideBytes);

// Strides in bytes, 64 bits: the pool crosses 2^31 elements.
struct Params {
  const char* source[2];  // K, V
  int64_t token_stride[2];
  int64_t head_stride[2];
  char* cache;
  int64_t block_stride;
  int64_t kv_stride;
  int64_t cache_head_stride;
  int64_t place_stride;
  const int64_t* slot;
  int64_t slots;  // B * bs
  int64_t tokens;
  int32_t block_size;
  int32_t row_units;    // of one head's K or V
  int32_t token_units;  // of one token's K and V
  int32_t tokens_per_block;
  float k_scale;
  float v_scale;
};

// How one unit of a row gets into the cache: as it is, or in e4m3.
template <typename Unit>
struct CopyUnit {
  static constexpr int kFrom = sizeof(Unit), kTo = sizeof(Unit);
  static __device__ __forceinline__ void Move(const char* from, char* to, float) {
    *reinterpret_cast<Unit*>(to) = __ldg(reinterpret_cast<const Unit*>(from));
  }
};

template <typename T, int kWidth>
struct QuantizeUnit {
  static constexpr int kFrom = kWidth * sizeof(T), kTo = kWidth;
  static __device__ __forceinline__ void Move(const char* from, char* to, float scale) {
    float x[kWidth];
    LoadElements<T, kWidth>(reinterpret_cast<const T*>(from), x);
    StoreCodes(to, x, scale);
  }
};

template <class Unit>
__global__ void __launch_bounds__(kThreads) CacheWriteKernel(const Params p) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * p.tokens_per_block + threadIdx.y;
  if (token >= p.tokens) return;
  const int64_t slot = p.slot[token];
  // One unsigned comparison refuses negative slots and those beyond the cache.
  if (static_cast<uint64_t>(slot) >= static_cast<uint64_t>(p.slots)) return;
  const int64_t block = slot / p.block_size;
  const int64_t place = slot - block * p.block_size;
  char* target = p.cache + block * p.block_stride + place * p.place_stride;
  const int32_t half = p.token_units / 2;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.token_units;
       i += static_cast<int32_t>(blockDim.x)) {
    const int kv = i < half ? 0 : 1;
    const int32_t j = i - kv * half;
    const int32_t head = j / p.row_units;
    const int64_t unit = j - head * p.row_units;
    // Selected, not indexed by kv: an index would put the arrays into local memory.
    const char* row = kv == 0 ? p.source[0] + token * p.token_stride[0] + head * p.head_stride[0]
                              : p.source[1] + token * p.token_stride[1] + head * p.head_stride[1];
    char* to = target + kv * p.kv_stride + head * p.cache_head_stride + unit * Unit::kTo;
    Unit::Move(row + unit * Unit::kFrom, to, kv == 0 ? p.k_scale : p.v_scale);
  }
}

bool Aligned(const Params& p, int64_t row_bytes) {
  int64_t all = row_bytes | p.block_stride | p.kv_stride | p.cache_head_stride | p.place_stride |
                static_cast<int64_t>(reinterpret_cast<uintptr_t>(p.cache));
  for (int kv = 0; kv < 2; ++kv) {
    all |= p.token_stride[kv] | p.head_stride[kv] |
           static_cast<int64_t>(reinterpret_cast<uintptr_t>(p.source[kv]));
  }
  return all % kWideBytes == 0;
}

Params MakeParams(const CacheWriteArgs& a) {
  const int64_t size = DTypeSize(a.k.dtype), cached = DTypeSize(a.cache.dtype);
  Params p{};
  const TensorView* sources[] = {&a.k, &a.v};
  for (int kv = 0; kv < 2; ++kv) {
    p.source[kv] = sources[kv]->ptr<const char>();
    p.token_stride[kv] = sources[kv]->stride[0] * size;
    p.head_stride[kv] = sources[kv]->stride[1] * size;
  }
  p.cache = a.cache.ptr<char>();
  p.block_stride = a.cache.stride[0] * cached;
  p.kv_stride = a.cache.stride[1] * cached;
  p.cache_head_stride = a.cache.stride[2] * cached;
  p.place_stride = a.cache.stride[3] * cached;
  p.k_scale = a.k_scale;
  p.v_scale = a.v_scale;
  p.slot = a.slot.ptr<const int64_t>();
  p.slots = a.cache.shape[0] * a.cache.shape[3];
  p.tokens = a.k.shape[0];
  p.block_size = static_cast<int32_t>(a.cache.shape[3]);
  return p;
}

template <class Unit>
Status LaunchUnits(Params p, int64_t heads, int64_t row_bytes, Stream stream) {
  p.row_units = static_cast<int32_t>(row_bytes / Unit::kFrom);
  p.token_units = static_cast<int32_t>(2 * heads * p.row_units);
  const unsigned x = static_cast<unsigned>(p.token_units < kThreads ? p.token_units : kThreads);
  const unsigned y = kThreads / x;
  p.tokens_per_block = static_cast<int32_t>(y);
  const int64_t grid = (p.tokens + y - 1) / y;
  if (grid > INT32_MAX) {
    return Status::InvalidArgument("cache_write: k has " + std::to_string(p.tokens) +
                                   " tokens, need fewer than 2^31");
  }
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(grid);
  shape.threads = x;
  shape.threads_y = y;
  shape.stream = stream;
  return Launch(CacheWriteKernel<Unit>, shape, p);
}

template <typename T>
Status LaunchQuantize(const Params& p, int64_t heads, int64_t row_bytes, Stream stream) {
  if (Aligned(p, row_bytes)) {
    return LaunchUnits<QuantizeUnit<T, kWideElements<T>>>(p, heads, row_bytes, stream);
  }
  return LaunchUnits<QuantizeUnit<T, 1>>(p, heads, row_bytes, stream);
}

}  // namespace

Status CacheWrite(const CacheWriteArgs& a, Stream stream) {
  if (Status s = Validate(a); !s.ok()) return s;
  const int64_t heads = a.k.shape[1];
  const int64_t row_bytes = a.k.shape[2] * DTypeSize(a.k.dtype);
  if (a.k.shape[0] * heads * row_bytes == 0) return Status::Ok();
  if (2 * heads * row_bytes > INT32_MAX || a.cache.shape[3] > INT32_MAX) {
    return Status::InvalidArgument(
        "cache_write: a token's K and V or a block exceed 2^31: use smaller ones");
  }
  const Params p = MakeParams(a);
  if (a.cache.dtype == DType::kF8E4M3) {
    if (a.k.dtype == DType::kF32) return LaunchQuantize<float>(p, heads, row_bytes, stream);
    if (a.k.dtype == DType::kF16) return LaunchQuantize<__half>(p, heads, row_bytes, stream);
    return LaunchQuantize<__nv_bfloat16>(p, heads, row_bytes, stream);
  }
  if (Aligned(p, row_bytes)) return LaunchUnits<CopyUnit<uint4>>(p, heads, row_bytes, stream);
  if (DTypeSize(a.k.dtype) == 4) {
    return LaunchUnits<CopyUnit<uint32_t>>(p, heads, row_bytes, stream);
  }
  return LaunchUnits<CopyUnit<uint16_t>>(p, heads, row_bytes, stream);
}

}  // namespace octavo::cuda
