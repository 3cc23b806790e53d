// out[block, K/V, head, place, :] = k or v[token, head, :] with block = slot / bs, place = slot %
// bs.
//
// Shapes: k, v [N, Hk, D]; cache [B, 2, Hk, bs, D]; slot [N] int64. float32, bfloat16 and float16
// alike: only bytes move. Into a cache of e4m3 goes what is left of x / scale. Grid: one thread
// copies one unit (16 bytes where every row is aligned to that, else one element) of K or of V of
// kTogether tokens, loaded before their slots are looked at; a block covers whole tokens. Bound by
// bytes: reads and writes 2 * N * Hk * D elements.
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "cache/slot.cuh"
#include "common/e4m3.cuh"
#include "common/element.cuh"
#include "common/host_device.h"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTogether = 2;  // tokens of which a thread has a unit under way
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
  float k_scale;
  float v_scale;
};

// How one unit of a row gets into the cache: as it is, or in e4m3.
template <typename T>
struct CopyUnit {
  using Unit = T;
  static constexpr int kFrom = sizeof(Unit), kTo = sizeof(Unit);
  static __device__ __forceinline__ Unit Get(const char* from) {
    return *reinterpret_cast<const Unit*>(from);
  }
  static __device__ __forceinline__ void Put(const Unit& unit, char* to, float) {
    *reinterpret_cast<Unit*>(to) = unit;
  }
};

template <typename T, int kWidth>
struct QuantizeUnit {
  using Unit = ElementPack<T, kWidth>;
  static constexpr int kFrom = sizeof(Unit), kTo = kWidth;
  static __device__ __forceinline__ Unit Get(const char* from) {
    return LoadPack<T, kWidth>(reinterpret_cast<const T*>(from));
  }
  static __device__ __forceinline__ void Put(const Unit& unit, char* to, float scale) {
    float x[kWidth];
    ToFloats(unit, x);
    StoreCodes(to, x, scale);
  }
};

// The place of a slot, or null where it lies outside the cache.
__device__ __forceinline__ char* PlaceOfSlot(const Params& p, int64_t slot) {
  // One unsigned comparison refuses negative slots and those beyond the cache.
  if (static_cast<uint64_t>(slot) >= static_cast<uint64_t>(p.slots)) return nullptr;
  const int64_t block = BlockOfSlot(slot, p.slots, p.block_size);
  return p.cache + block * p.block_stride + (slot - block * p.block_size) * p.place_stride;
}

template <class Move>
__global__ void __launch_bounds__(kThreads) CacheWriteKernel(const __grid_constant__ Params p) {
  using Unit = typename Move::Unit;
  GridDependencyWait();
  GridDependencyLaunch();
  const int64_t first = int64_t{blockIdx.x} * blockDim.y * kTogether + threadIdx.y;
  if (first >= p.tokens) return;
  const int32_t half = p.token_units / 2;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < p.token_units;
       i += static_cast<int32_t>(blockDim.x)) {
    const int kv = i < half ? 0 : 1;
    const int32_t j = i - kv * half, head = j / p.row_units;
    const int64_t unit = j - head * p.row_units;
    // Selected, not indexed by kv: an index would put the arrays into local memory.
    const int64_t stride = kv == 0 ? p.token_stride[0] : p.token_stride[1];
    const char* const from =
        (kv == 0 ? p.source[0] + head * p.head_stride[0] : p.source[1] + head * p.head_stride[1]) +
        unit * Move::kFrom;
    Unit units[kTogether];
    int64_t slot[kTogether];
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      // A token beyond the last is loaded as the last and goes nowhere.
      const int64_t token = first + t * int64_t{blockDim.y};
      slot[t] = token < p.tokens ? p.slot[token] : -1;
      units[t] = Move::Get(from + Min(token, p.tokens - 1) * stride);
    }
    const int64_t to = kv * p.kv_stride + head * p.cache_head_stride + unit * Move::kTo;
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      char* const place = PlaceOfSlot(p, slot[t]);
      if (place != nullptr) Move::Put(units[t], place + to, kv == 0 ? p.k_scale : p.v_scale);
    }
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

template <class Move>
Status LaunchUnits(Params p, int64_t heads, int64_t row_bytes, Stream stream) {
  p.row_units = static_cast<int32_t>(row_bytes / Move::kFrom);
  p.token_units = static_cast<int32_t>(2 * heads * p.row_units);
  const unsigned x = static_cast<unsigned>(p.token_units < kThreads ? p.token_units : kThreads);
  const unsigned y = kThreads / x;
  const int64_t grid = CeilDiv(p.tokens, int64_t{y} * kTogether);
  if (grid > INT32_MAX) {
    return Status::InvalidArgument("cache_write: k has " + std::to_string(p.tokens) +
                                   " tokens, need fewer than 2^31");
  }
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(grid);
  shape.threads = x;
  shape.threads_y = y;
  shape.stream = stream;
  return LaunchDependent(CacheWriteKernel<Move>, shape, p);
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
