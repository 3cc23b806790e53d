// The prefill kernel's parameters, its compile-time shapes and their launchers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "attention/params.h"
#include "attention/plan.h"
#include "common/e4m3.h"
#include "common/launch.h"

namespace octavo::cuda {

struct PrefillParams {
  LayerParams layer;
  const PrefillTile* tiles;
  int32_t* prefill;        // PlanParts::prefill
  uint32_t group_inverse;  // ceil(2^16 / group)
  float* shared_sums;      // as PlanParts; of the wgmma kernel alone
  float2* shared_stats;
};

inline constexpr int kPrefillWarps = 4;
inline constexpr int kPrefillStages = 2;

// A CTA's tile: kRows packed queries (token x head of the group) against kKeys keys at a time.
// Wider heads take fewer rows and keys, because a thread holds 255 registers, and widening needs
// some of them. A cache of e4m3 (CachedT) has one stage of keys in 16 bits, and one of codes that
// fills meanwhile.
template <typename ElementT, int kHeadDimV, typename CachedT = ElementT>
struct PrefillShape {
  using Element = ElementT;
  static constexpr bool kFp8 = std::is_same_v<CachedT, E4m3>;
  static constexpr int kHeadDim = kHeadDimV;
  static constexpr int kRowTiles = kHeadDim > 128 ? 1 : 2;  // of 16 rows, for each warp
  static constexpr int kRows = kPrefillWarps * kRowTiles * 16;
  static constexpr int kKeys = kHeadDim > 128 || (kFp8 && kHeadDim == 128) ? 32 : 64;
  static constexpr int kThreads = kPrefillWarps * 32;
  static constexpr int kRowBytes = kHeadDim * 2;
  static constexpr int kRowPieces = kRowBytes / 16;
  static constexpr int kQueryBytes = kRows * kRowBytes;
  static constexpr int kTileBytes = kKeys * kRowBytes;  // of K or of V
  static constexpr int kStageBytes = 2 * kTileBytes;
  static constexpr int kCachedBytes = kHeadDim * static_cast<int>(sizeof(CachedT));  // of a row
  static constexpr int kRingBytes =
      kFp8 ? kStageBytes + 2 * kKeys * kCachedBytes : kPrefillStages * kStageBytes;
  static constexpr int kTicketBytes = 64;  // the tile at hand and the next item
  static constexpr int kSharedBytes = kQueryBytes + kRingBytes + kTicketBytes;
  static constexpr int kCtasPerMultiprocessor = 2;

  static_assert(sizeof(Element) == 2);
  static_assert(kFp8 || std::is_same_v<CachedT, Element>);
  static_assert(kHeadDim % 64 == 0, "rows are whole groups of eight swizzled pieces");
  static_assert(kKeys / kPrefillWarps <= kTileTokens, "a warp's keys lie in one block");
  static_assert(kSharedBytes <= 112 * 1024, "two CTAs on a multiprocessor of sm_90");
};

inline constexpr int kMaxPrefillGroup = 64;  // every shape has that many rows

// Query tokens of a prefill tile.
inline int PrefillTokens(int head_dim, int group) {
  return (head_dim > 128 ? PrefillShape<__half, 256>::kRows : PrefillShape<__half, 128>::kRows) /
         group;
}

// `half`: float16, not bfloat16; `fp8`: the cache.
Status LaunchPrefill(int head_dim, bool half, bool fp8, const PrefillParams& p,
                     const LaunchShape& launch);

// One instantiation each, in prefill_<head dim>_<dtype>.cu.
template <typename T, int kHeadDim, typename Cached = T>
Status LaunchPrefillOf(const PrefillParams& p, const LaunchShape& launch);
extern template Status LaunchPrefillOf<__nv_bfloat16, 64>(const PrefillParams&, const LaunchShape&);
extern template Status LaunchPrefillOf<__nv_bfloat16, 128>(const PrefillParams&,
                                                           const LaunchShape&);
extern template Status LaunchPrefillOf<__nv_bfloat16, 256>(const PrefillParams&,
                                                           const LaunchShape&);
extern template Status LaunchPrefillOf<__nv_bfloat16, 64, E4m3>(const PrefillParams&,
                                                                const LaunchShape&);
extern template Status LaunchPrefillOf<__nv_bfloat16, 128, E4m3>(const PrefillParams&,
                                                                 const LaunchShape&);
extern template Status LaunchPrefillOf<__nv_bfloat16, 256, E4m3>(const PrefillParams&,
                                                                 const LaunchShape&);
extern template Status LaunchPrefillOf<__half, 64>(const PrefillParams&, const LaunchShape&);
extern template Status LaunchPrefillOf<__half, 128>(const PrefillParams&, const LaunchShape&);
extern template Status LaunchPrefillOf<__half, 256>(const PrefillParams&, const LaunchShape&);
extern template Status LaunchPrefillOf<__half, 64, E4m3>(const PrefillParams&, const LaunchShape&);
extern template Status LaunchPrefillOf<__half, 128, E4m3>(const PrefillParams&, const LaunchShape&);
extern template Status LaunchPrefillOf<__half, 256, E4m3>(const PrefillParams&, const LaunchShape&);

}  // namespace octavo::cuda
