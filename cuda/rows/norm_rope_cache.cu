// norm_rope_cache: rms_norm of each head of q and k, rope, and cache_write in one pass, with the
// bits of the three one after another.
//
// Shapes: q [N, Hq, D], k and v [N, Hk, D], cache [B, 2, Hk, bs, D], slot [N]. Grid: a warp for
// each head of q, k and v of a token. A warp stages its head in shared memory, because the partner
// of an element belongs to another lane. A position outside the table leaves the head unturned, a
// slot outside the cache writes nothing. Bound by bytes: q, k and v read once, q and the cache
// written once. Sources: those of rms_norm and rope. The usual heads go to qkv_pairs.cu; this is
// for all others.
#include <cuda_runtime.h>

#include "base/ops_check.h"
#include "cache/slot.cuh"
#include "common/e4m3.cuh"
#include "common/launch.h"
#include "common/rows.h"
#include "octavo/cuda_ops.h"
#include "rows/norm.cuh"
#include "rows/qkv.h"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kMaxHeadDim = 512;
static_assert(kMaxHeadDim <= kWarpRow, "a head's norm adds in the order of rms_norm");

struct Params {
  QkvParams qkv;
  int64_t heads;  // of all tokens, q, k and v
};

// The address of a token's K of a head in the cache, or null.
__device__ __forceinline__ char* SlotAddress(const CachePlace& c, int64_t slot, int head) {
  if (static_cast<uint64_t>(slot) >= static_cast<uint64_t>(c.slots)) return nullptr;
  const int64_t block = BlockOfSlot(slot, c.slots, c.block_size);
  const int64_t within = slot - block * c.block_size;
  return c.cache + block * c.block_stride + head * c.head_stride + within * c.place_stride;
}

// Stores elements i, i + 1, ... of a head, in e4m3 where there is a scale: of what T holds.
template <typename T, int kWidth>
__device__ __forceinline__ void StorePart(char* to, int i, float (&x)[kWidth], float scale) {
  if (scale == 0.0f) {
    StoreElements<T, kWidth>(reinterpret_cast<T*>(to) + i, x);
    return;
  }
  RoundElements<T>(x);
  StoreCodes(to + i, x, scale);
}

template <typename T, int kWidth>
__device__ __forceinline__ void CopyHead(const char* from, char* to, int head_dim, float scale) {
  float x[kWidth];
  for (int i = threadIdx.x % kWarpSize * kWidth; i < head_dim; i += kWarpSize * kWidth) {
    LoadElements<T, kWidth>(reinterpret_cast<const T*>(from) + i, x);
    StorePart<T, kWidth>(to, i, x, scale);
  }
}

// Loads a head, norms it where there is a weight, and leaves it in `staged`.
template <typename T, int kWidth>
__device__ __forceinline__ void StageHead(const QkvParams& p, const char* from, const char* weight,
                                          float* staged) {
  const T* const x = reinterpret_cast<const T*>(from);
  const int first = threadIdx.x % kWarpSize * kWidth, step = kWarpSize * kWidth;
  float sum = 0.0f;
  for (int i = first; i < p.head_dim; i += step) {
    float a[kWidth];
    LoadElements<T, kWidth>(x + i, a);
    sum = AddSquares(sum, a);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) staged[i + j] = a[j];
  }
  if (weight != nullptr) {
    const float inverse = InverseRms(SumOfWarp(sum), p.head_dim, p.eps);
    for (int i = first; i < p.head_dim; i += step) {
      float w[kWidth];
      LoadElements<T, kWidth>(reinterpret_cast<const T*>(weight) + i, w);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        // rms_norm stores T, and rope begins with that.
        staged[i + j] = Rounded<T>(staged[i + j] * inverse * (w[j] + p.offset));
      }
    }
  }
  __syncwarp();
}

// Turns a staged head in place.
__device__ __forceinline__ void TurnHead(const RotaryTable& table, const float* cos,
                                         float* staged) {
  if (cos == nullptr) return;
  for (int i = threadIdx.x % kWarpSize; i < table.half; i += kWarpSize) {
    const PairPlace at = PlaceOfPair(i, table.half, table.interleaved);
    Rotate(staged[at.first], staged[at.second], cos[i], cos[i + table.half], &staged[at.first],
           &staged[at.second]);
  }
  __syncwarp();
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kWarps* kWarpSize, 4)
    NormRopeCacheKernel(const __grid_constant__ Params all) {
  const QkvParams& p = all.qkv;
  __shared__ float shared[kWarps][kMaxHeadDim];
  GridDependencyWait();
  GridDependencyLaunch();
  const int warp = threadIdx.x / kWarpSize;
  const int64_t number = int64_t{blockIdx.x} * kWarps + warp;
  if (number >= all.heads) return;
  const int64_t token = number / p.token_heads;
  int head = static_cast<int>(number - token * p.token_heads);
  const bool is_q = head < p.q_heads;
  head -= is_q ? 0 : p.q_heads;
  const bool is_v = !is_q && head >= p.kv_heads;
  head -= is_v ? p.kv_heads : 0;
  char* const q = p.q + token * p.q_stride.token + head * p.q_stride.head;
  char* to = q;
  if (!is_q) {
    to = SlotAddress(p.place, p.slot[token], head);
    if (to == nullptr) return;
  }
  if (is_v) {
    CopyHead<T, kWidth>(p.v + token * p.v_stride.token + head * p.v_stride.head,
                        to + p.place.value_stride, p.head_dim, p.place.v_scale);
    return;
  }
  float* const staged = shared[warp];
  StageHead<T, kWidth>(p, is_q ? q : p.k + token * p.k_stride.token + head * p.k_stride.head,
                       is_q ? p.q_norm : p.k_norm, staged);
  TurnHead(p.table, p.table.Of(p.position[token]), staged);
  for (int i = threadIdx.x % kWarpSize * kWidth; i < p.head_dim; i += kWarpSize * kWidth) {
    float x[kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) x[j] = staged[i + j];
    StorePart<T, kWidth>(to, i, x, is_q ? 0.0f : p.place.k_scale);
  }
}

template <typename T>
Status LaunchOf(const Params& p, bool wide, const LaunchShape& shape) {
  return wide ? LaunchDependent(NormRopeCacheKernel<T, kWideElements<T>>, shape, p)
              : LaunchDependent(NormRopeCacheKernel<T, 1>, shape, p);
}

// Whether every row of a cache in e4m3 begins where `codes` of them are stored at once. A cache of
// few bytes must not make the norms of q and k add in another order than rms_norm.
bool WideCodes(const TensorView& cache, int64_t head_dim, int64_t codes) {
  int64_t all = static_cast<int64_t>(reinterpret_cast<uintptr_t>(cache.data)) | head_dim;
  for (int d = 0; d + 1 < cache.rank; ++d) all |= cache.shape[d] > 1 ? cache.stride[d] : 0;
  return all % codes == 0;
}

bool Wide(const NormRopeCacheArgs& a) {
  const int64_t d = a.q.shape[2];
  const bool cache = a.cache.dtype == DType::kF8E4M3
                         ? WideCodes(a.cache, d, kWideBytes / DTypeSize(a.q.dtype))
                         : WideRows(a.cache, d);
  bool wide = cache && WideRows(a.q, d) && WideRows(a.k, d) && WideRows(a.v, d);
  if (a.q_norm.has_value()) wide = wide && WideRows(*a.q_norm, d) && WideRows(*a.k_norm, d);
  return wide;
}

}  // namespace

QkvParams QkvParamsOf(const NormRopeCacheArgs& a) {
  const int64_t size = DTypeSize(a.cache.dtype);
  QkvParams p{};
  p.q = a.q.ptr<char>();
  p.k = a.k.ptr<char>();
  p.v = a.v.ptr<char>();
  p.q_stride = StridesOf(a.q);
  p.k_stride = StridesOf(a.k);
  p.v_stride = StridesOf(a.v);
  p.q_norm = a.q_norm.has_value() ? a.q_norm->ptr<char>() : nullptr;
  p.k_norm = a.k_norm.has_value() ? a.k_norm->ptr<char>() : nullptr;
  p.position = a.position.ptr<int32_t>();
  p.slot = a.slot.ptr<int64_t>();
  p.table = {a.cos_sin.ptr<float>(), a.cos_sin.stride[0], a.cos_sin.shape[0],
             static_cast<int32_t>(a.cos_sin.shape[1] / 2), a.interleaved};
  const int64_t* stride = a.cache.stride;
  p.place = {a.cache.ptr<char>(),
             stride[0] * size,
             stride[1] * size,
             stride[2] * size,
             stride[3] * size,
             a.cache.shape[0] * a.cache.shape[3],
             static_cast<int32_t>(a.cache.shape[3]),
             a.cache.dtype == DType::kF8E4M3 ? a.k_scale : 0.0f,
             a.cache.dtype == DType::kF8E4M3 ? a.v_scale : 0.0f};
  p.q_heads = static_cast<int32_t>(a.q.shape[1]);
  p.kv_heads = static_cast<int32_t>(a.k.shape[1]);
  p.token_heads = p.q_heads + 2 * p.kv_heads;
  p.tokens = a.q.shape[0];
  p.head_dim = static_cast<int32_t>(a.q.shape[2]);
  p.eps = a.eps;
  p.offset = a.weight_offset;
  return p;
}

bool FitsPairs(const NormRopeCacheArgs& a, const QkvParams& p) {
  return FitsPairs(a.q.dtype, p, Wide(a));
}

Status NormRopeCache(const NormRopeCacheArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  const char* op = "norm_rope_cache";
  const QkvParams p = QkvParamsOf(a);
  const Params all{p, p.tokens * p.token_heads};
  if (all.heads == 0 || p.head_dim == 0) return Status::Ok();
  if (p.head_dim > kMaxHeadDim) return InvalidOp(op, "the head dim is above 512");
  if (a.cache.shape[3] > INT32_MAX) return InvalidOp(op, "a block has 2^31 tokens or more");
  const bool wide = Wide(a);
  if (FitsPairs(a.q.dtype, p, wide)) return LaunchPairs(a.q.dtype, p, stream);
  const int64_t grid = (all.heads + kWarps - 1) / kWarps;
  if (grid > INT32_MAX) return InvalidOp(op, "q has too many tokens: cut it");
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(grid);
  shape.threads = kWarps * kWarpSize;
  shape.stream = stream;
  switch (a.q.dtype) {
    case DType::kF32:
      return LaunchOf<float>(all, wide, shape);
    case DType::kF16:
      return LaunchOf<__half>(all, wide, shape);
    default:
      return LaunchOf<__nv_bfloat16>(all, wide, shape);
  }
}

}  // namespace octavo::cuda
