// norm_rope_cache and rope for the usual heads: halves rotated against each other, all of the head,
// halves of a power of two of 16-byte pieces (head dims 64, 128, 256 in 16 bits).
//
// Shapes as in ops.h. Grid: a CTA a token, or several where tokens are few. A lane holds one piece
// of each half of a head, so both elements of a pair are in its registers; 4 to 16 lanes share a
// head, and a CTA's groups of lanes take the heads of its token in turn. A lane loads its pieces
// before it looks at the position, the angles and the slot, of which each waits for the one before;
// loading several heads ahead was slower on an H200, where it left room for fewer CTAs. Sums over a
// head run in the order of rms_norm. Bound by bytes: q, k and v read once, q and the cache written
// once.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "common/e4m3.cuh"
#include "common/host_device.h"
#include "rows/head_piece.cuh"
#include "rows/qkv.h"

namespace octavo::cuda {
namespace {

constexpr int kPairThreads = 128;
constexpr int kPairCtas = 7;  // of a multiprocessor: threads count for more than loads of each
constexpr int64_t kFewTokens = 256;  // up to here every CTA takes one round of heads
constexpr int kMaxLanes = 16;  // of a head: rms_norm gives every lane of a warp at most one piece

// Where a head of a token goes. `to` is null where nothing is to be done.
struct HeadPlace {
  char* to;
  const char* weight;
  bool turn;
  float scale;  // of a cache in e4m3; 0: T is stored
};

// One multiplication: FitsPairs keeps strides of heads within 32 bits.
__device__ __forceinline__ int64_t OffsetOfHead(int head, int64_t stride) {
  return int64_t{head} * static_cast<int32_t>(stride);
}

// Heads are numbered over q, k and v.
__device__ __forceinline__ char* SourceOfHead(const QkvParams& p, int64_t token, int head) {
  if (head < p.q_heads) {
    return p.q + token * p.q_stride.token + OffsetOfHead(head, p.q_stride.head);
  }
  head -= p.q_heads;
  if (head < p.kv_heads) {
    return p.k + token * p.k_stride.token + OffsetOfHead(head, p.k_stride.head);
  }
  head -= p.kv_heads;
  return const_cast<char*>(p.v) + token * p.v_stride.token + OffsetOfHead(head, p.v_stride.head);
}

__device__ __forceinline__ HeadPlace PlaceOfHead(const QkvParams& p, char* source, int head,
                                                 int64_t slot_offset) {
  if (head < p.q_heads) return {source, p.q_norm, true, 0.0f};
  if (p.place.cache == nullptr) return {source, p.k_norm, true, 0.0f};
  head -= p.q_heads;
  const bool is_v = head >= p.kv_heads;
  head -= is_v ? p.kv_heads : 0;
  char* const slot = slot_offset < 0
                         ? nullptr
                         : p.place.cache + slot_offset + OffsetOfHead(head, p.place.head_stride);
  if (!is_v) return {slot, p.k_norm, true, p.place.k_scale};
  return {slot == nullptr ? nullptr : slot + p.place.value_stride, nullptr, false, p.place.v_scale};
}

// Norms, turns and stores one lane's part of a head. All lanes of a warp come together: sums are
// exchanged among them.
template <typename T>
__device__ __forceinline__ void FinishPiece(const QkvParams& p, const HeadPlace& place,
                                            const HeadPiece<T>& piece, int at, int lanes,
                                            const float (&c)[kWideElements<T>],
                                            const float (&s)[kWideElements<T>], bool turn,
                                            bool there) {
  constexpr int kWidth = kWideElements<T>;
  const int half = p.head_dim / 2;
  float a[kWidth], b[kWidth];
  const auto weight = [&] { return LoadWeight<T>(place.weight, p.head_dim, at); };
  NormAndTurn(p, piece, place.weight != nullptr, weight, lanes, c, s, place.turn && turn, a, b);
  if (place.to == nullptr || !there) return;
  if (place.scale != 0.0f) {
    RoundElements<T>(a);
    RoundElements<T>(b);
    StoreCodes(place.to + at, a, place.scale);
    StoreCodes(place.to + half + at, b, place.scale);
    return;
  }
  StoreElements<T, kWidth>(reinterpret_cast<T*>(place.to) + at, a);
  StoreElements<T, kWidth>(reinterpret_cast<T*>(place.to) + half + at, b);
}

template <typename T>
__global__ void __launch_bounds__(kPairThreads, kPairCtas)
    PairKernel(const __grid_constant__ QkvParams p) {
  constexpr int kWidth = kWideElements<T>;
  GridDependencyWait();
  GridDependencyLaunch();
  const int64_t token = blockIdx.x;
  const int half = p.head_dim / 2, lanes = half / kWidth;
  const int group = threadIdx.x / lanes, groups = kPairThreads / lanes;
  const int at = (threadIdx.x - group * lanes) * kWidth;
  const int32_t position = p.position[token];
  const int64_t slot = p.place.cache == nullptr ? -1 : p.slot[token];
#pragma unroll 1
  for (int first = static_cast<int>(blockIdx.y) * groups; first < p.token_heads;
       first += static_cast<int>(gridDim.y) * groups) {
    const int head = Min(first + group, p.token_heads - 1);
    char* const source = SourceOfHead(p, token, head);
    const T* const from = reinterpret_cast<const T*>(source) + at;
    const HeadPiece<T> piece{LoadPack<T, kWidth>(from), LoadPack<T, kWidth>(from + half)};
    // The loads above wait for neither the position nor the slot.
    const float* const cos = p.table.Of(position);
    float c[kWidth] = {}, s[kWidth] = {};
    if (cos != nullptr) {
      LoadFloats(cos + at, c);
      LoadFloats(cos + half + at, s);
    }
    const HeadPlace place = PlaceOfHead(p, source, head, SlotOffset(p.place, slot));
    FinishPiece(p, place, piece, at, lanes, c, s, cos != nullptr, first + group < p.token_heads);
  }
}

}  // namespace

bool FitsPairs(DType dtype, const QkvParams& p, bool wide) {
  const int lanes = p.head_dim / (2 * kWideBytes / DTypeSize(dtype));
  const bool power = lanes > 0 && lanes <= kMaxLanes && (lanes & (lanes - 1)) == 0;
  const bool wide_angles = reinterpret_cast<uintptr_t>(p.table.cos_sin) % kWideBytes == 0 &&
                           p.table.stride % kWideElements<float> == 0;
  bool near = true;
  for (const int64_t stride :
       {p.q_stride.head, p.k_stride.head, p.v_stride.head, p.place.head_stride}) {
    near = near && stride >= 0 && stride <= INT32_MAX;
  }
  return wide && wide_angles && near && power &&
         lanes * 2 * kWideBytes == p.head_dim * DTypeSize(dtype) &&
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
