// norm_rope_cache and rope for the usual heads: halves rotated against each other, all of the head,
// halves of a power of two of 16-byte pieces (head dims 64, 128, 256 in 16 bits).
//
// Shapes as in ops.h. Grid: a CTA a token, or several where tokens are few. A lane holds one piece
// of each half of a head, so both elements of a pair are in its registers; 4 to 16 lanes share a
// head and a CTA's groups of lanes take the heads of its token in turn, with the angles in
// registers. Sums over a head run in the order of rms_norm. Bound by bytes: q, k and v read once, q
// and the cache written once.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "common/e4m3.cuh"
#include "common/host_device.h"
#include "rows/norm.cuh"
#include "rows/qkv.h"

namespace octavo::cuda {
namespace {

constexpr int kPairThreads = 128;
constexpr int64_t kFewTokens = 256;  // up to here every CTA takes one round of heads
constexpr int kMaxLanes = 16;  // of a head: rms_norm gives every lane of a warp at most one piece

// Where a head of a token comes from and goes to. `to` is null where nothing is to be done.
struct HeadPlace {
  const char* from;
  char* to;
  const char* weight;
  bool turn;
  float scale;  // of a cache in e4m3; 0: T is stored
};

__device__ __forceinline__ HeadPlace PlaceOfHead(const QkvParams& p, int64_t token, int head,
                                                 int64_t slot_offset) {
  if (head < p.q_heads) {
    char* const q = p.q + token * p.q_stride.token + head * p.q_stride.head;
    return {q, q, p.q_norm, true, 0.0f};
  }
  head -= p.q_heads;
  const bool is_v = head >= p.kv_heads;
  head -= is_v ? p.kv_heads : 0;
  char* const k = p.k + token * p.k_stride.token + head * p.k_stride.head;
  if (p.place.cache == nullptr) return {k, k, p.k_norm, true, 0.0f};
  char* const slot =
      slot_offset < 0 ? nullptr : p.place.cache + slot_offset + head * p.place.head_stride;
  if (!is_v) return {k, slot, p.k_norm, true, p.place.k_scale};
  return {p.v + token * p.v_stride.token + head * p.v_stride.head,
          slot == nullptr ? nullptr : slot + p.place.value_stride, nullptr, false, p.place.v_scale};
}

// Byte offset of a token's first head in the cache; -1: it goes nowhere.
__device__ __forceinline__ int64_t SlotOffset(const QkvParams& p, int64_t token) {
  if (p.place.cache == nullptr) return -1;
  const int64_t slot = p.slot[token];
  if (static_cast<uint64_t>(slot) >= static_cast<uint64_t>(p.place.slots)) return -1;
  const int64_t block = slot / p.place.block_size;
  return block * p.place.block_stride + (slot - block * p.place.block_size) * p.place.place_stride;
}

template <typename T, int kWidth>
__device__ __forceinline__ void NormPiece(const char* weight, int at, float inverse, float offset,
                                          float (&x)[kWidth]) {
  float w[kWidth];
  LoadElements<T, kWidth>(reinterpret_cast<const T*>(weight) + at, w);
  ScaleByWeight(x, w, inverse, offset);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) x[j] = Rounded<T>(x[j]);  // what rms_norm would have stored
}

template <typename T>
__global__ void __launch_bounds__(kPairThreads) PairKernel(const __grid_constant__ QkvParams p) {
  constexpr int kWidth = kWideElements<T>;
  GridDependencyWait();
  GridDependencyLaunch();
  const int64_t token = blockIdx.x;
  const int half = p.head_dim / 2, lanes = half / kWidth;
  const int group = threadIdx.x / lanes, groups = kPairThreads / lanes;
  const int at = (threadIdx.x - group * lanes) * kWidth;
  const int64_t slot_offset = SlotOffset(p, token);
  const float* const cos = p.table.Of(p.position[token]);
  float c[kWidth], s[kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    c[j] = cos == nullptr ? 1.0f : cos[at + j];
    s[j] = cos == nullptr ? 0.0f : cos[half + at + j];
  }
  // All lanes of a warp stay together: sums are exchanged among them.
#pragma unroll 1
  for (int first = static_cast<int>(blockIdx.y) * groups; first < p.token_heads;
       first += static_cast<int>(gridDim.y) * groups) {
    const int head = Min(first + group, p.token_heads - 1);
    const HeadPlace place = PlaceOfHead(p, token, head, slot_offset);
    float a[kWidth], b[kWidth];
    LoadElements<T, kWidth>(reinterpret_cast<const T*>(place.from) + at, a);
    LoadElements<T, kWidth>(reinterpret_cast<const T*>(place.from) + half + at, b);
    if (p.q_norm != nullptr) {
      float sum = AddSquares(0.0f, a) + AddSquares(0.0f, b);
      for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
      if (place.weight != nullptr) {
        const float inverse = InverseRms(sum, p.head_dim, p.eps);
        NormPiece<T, kWidth>(place.weight, at, inverse, p.offset, a);
        NormPiece<T, kWidth>(place.weight, half + at, inverse, p.offset, b);
      }
    }
    if (place.turn && cos != nullptr) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) Rotate(a[j], b[j], c[j], s[j], &a[j], &b[j]);
    }
    if (place.to == nullptr || first + group >= p.token_heads) continue;
    if (place.scale != 0.0f) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        a[j] = Rounded<T>(a[j]);
        b[j] = Rounded<T>(b[j]);
      }
      StoreCodes(place.to + at, a, place.scale);
      StoreCodes(place.to + half + at, b, place.scale);
      continue;
    }
    StoreElements<T, kWidth>(reinterpret_cast<T*>(place.to) + at, a);
    StoreElements<T, kWidth>(reinterpret_cast<T*>(place.to) + half + at, b);
  }
}

}  // namespace

bool FitsPairs(DType dtype, const QkvParams& p, bool wide) {
  const int lanes = p.head_dim / (2 * kWideBytes / DTypeSize(dtype));
  const bool power = lanes > 0 && lanes <= kMaxLanes && (lanes & (lanes - 1)) == 0;
  return wide && power && lanes * 2 * kWideBytes == p.head_dim * DTypeSize(dtype) &&
         p.table.half * 2 == p.head_dim && !p.table.interleaved && p.tokens <= INT32_MAX;
}

Status LaunchPairs(DType dtype, const QkvParams& p, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(p.tokens);
  if (p.tokens <= kFewTokens) {
    const int lanes = p.head_dim * DTypeSize(dtype) / (2 * kWideBytes);
    shape.grid_y = static_cast<unsigned>(CeilDiv(p.token_heads, kPairThreads / lanes));
  }
  shape.threads = kPairThreads;
  shape.stream = stream;
  switch (dtype) {
    case DType::kF32:
      return LaunchDependent(PairKernel<float>, shape, p);
    case DType::kF16:
      return LaunchDependent(PairKernel<__half>, shape, p);
    default:
      return LaunchDependent(PairKernel<__nv_bfloat16>, shape, p);
  }
}

}  // namespace octavo::cuda
