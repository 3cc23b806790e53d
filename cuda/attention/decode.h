// The decode kernel's parameters, its compile-time shapes and their launchers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "attention/params.h"
#include "attention/plan.h"
#include "common/e4m3.h"
#include "common/launch.h"
#include "octavo/dtype.h"

namespace octavo::cuda {

struct DecodeParams {
  LayerParams layer;
  const CtaWork* ctas;
  const Segment* segments;
  uint32_t* ticket;
  uint32_t* arrived;
  float* sums;
  float2* stats;
  const float* shared_sums;  // as PlanParts
  const float2* shared_stats;
  int32_t shared_stride;  // states from a part of a row to the next
  bool plan_ready;        // as AttentionPlan::ready
  // Whether the kernel in front is the prefill of the same call, which it runs beside: both read
  // what came before them and write rows of their own.
  bool beside_prefill;
};

inline constexpr int kColumnsOfMma = 8;  // the n side of mma m16n8k16

// Warps and stages of a CTA: what fills a multiprocessor's memory pipeline, as one CTA of eight
// warps (Wide) or as two of four (Pair). A cache of half the bytes (CachedT: e4m3) gets twice the
// stages, so that as much is under way, and no size depends on the dtypes.
template <typename ElementT, typename CachedT, int kHeadDimV, int kColumnTilesV, int kWarpsV,
          int kStagesV>
struct DecodeShape {
  using Element = ElementT;
  static constexpr bool kFp8 = std::is_same_v<CachedT, E4m3>;
  // What is multiplied: float16 holds every number of e4m3, and takes one conversion of two.
  using Product = std::conditional_t<kFp8, __half, Element>;
  static constexpr int kHeadDim = kHeadDimV;
  static constexpr int kColumnTiles = kColumnTilesV;
  static constexpr int kColumns = kColumnTiles * kColumnsOfMma;
  static constexpr int kWarps = kWarpsV;
  static constexpr int kThreads = kWarps * 32;
  // That a multiprocessor is to have registers for: with two column tiles the compiler would spill
  // to have more of them. 0: as it likes.
  static constexpr int kCtas = kWarps == 4 && kColumnTiles == 2 ? 2 : 0;
  static constexpr int kStages = kStagesV * 2 / static_cast<int>(sizeof(CachedT));
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(CachedT));
  static constexpr int kRowPieces = kRowBytes / 16;
  static constexpr int kTileBytes = kTileTokens * kRowBytes;  // of K or of V
  static constexpr int kStageBytes = 2 * kTileBytes;
  static constexpr int kRingBytes = kWarps * kStages * kStageBytes;
  // Four floats of padding put neighbouring columns of the merge buffer into different banks.
  static constexpr int kMergeRow = kHeadDim + 4;
  static constexpr int kMergeFloats = kWarps * kColumnsOfMma * kMergeRow;
  static constexpr int kStatFloats = kWarps * kColumnsOfMma * 2;
  // Whether this CTA merges the splits, then numbers of segments that were dealt to it.
  static constexpr int kFlagFloats = 4, kDealtFlag = 2;
  static constexpr int kSharedBytes = kRingBytes + (kMergeFloats + kStatFloats + kFlagFloats) * 4;

  static_assert(sizeof(Element) == 2);
  static_assert(kFp8 || std::is_same_v<CachedT, Element>);
  static_assert(kHeadDim % 64 == 0, "rows are whole groups of swizzled pieces");
  static_assert(kStages >= 2, "one stage is read while another one fills");
  static_assert(kSharedBytes <= 163 * 1024, "what sm_80 gives a block");
};

template <typename T, typename Cached, int kHeadDim>
struct DecodeShapesOf;

template <typename T, typename Cached>
struct DecodeShapesOf<T, Cached, 64> {
  template <int kColumnTiles>
  using Wide = DecodeShape<T, Cached, 64, kColumnTiles, 8, 4>;
  template <int kColumnTiles>
  using Pair = DecodeShape<T, Cached, 64, kColumnTiles, 4, 6>;
};

template <typename T, typename Cached>
struct DecodeShapesOf<T, Cached, 128> {
  template <int kColumnTiles>
  using Wide = DecodeShape<T, Cached, 128, kColumnTiles, 8, 2>;
  template <int kColumnTiles>
  using Pair = DecodeShape<T, Cached, 128, kColumnTiles, 4, 3>;
};

// One shape: a second CTA would leave each warp a ring of one stage.
template <typename T, typename Cached>
struct DecodeShapesOf<T, Cached, 256> {
  template <int kColumnTiles>
  using Wide = DecodeShape<T, Cached, 256, kColumnTiles, 4, 2>;
  template <int kColumnTiles>
  using Pair = Wide<kColumnTiles>;
};

// Which instantiation runs. Two column tiles would not fit the registers at head dim 256.
struct DecodeChoice {
  int head_dim = 0;
  bool half = false;  // float16, not bfloat16
  bool fp8 = false;   // the cache
  int column_tiles = 1;
  bool pair = false;

  int columns() const { return column_tiles * kColumnsOfMma; }
};

int DecodeWarps(const DecodeChoice& choice);
// CTAs that a multiprocessor holds.
int DecodeCtas(const DecodeChoice& choice, const DeviceFacts& facts);
Status LaunchDecode(const DecodeChoice& choice, const DecodeParams& p, const LaunchShape& launch);

// One instantiation each, in decode_<head dim>_<dtype>.cu.
template <typename T, int kHeadDim, typename Cached = T>
Status LaunchDecodeOf(const DecodeChoice& choice, const DecodeParams& p, const LaunchShape& launch);
extern template Status LaunchDecodeOf<__nv_bfloat16, 64>(const DecodeChoice&, const DecodeParams&,
                                                         const LaunchShape&);
extern template Status LaunchDecodeOf<__nv_bfloat16, 128>(const DecodeChoice&, const DecodeParams&,
                                                          const LaunchShape&);
extern template Status LaunchDecodeOf<__nv_bfloat16, 256>(const DecodeChoice&, const DecodeParams&,
                                                          const LaunchShape&);
extern template Status LaunchDecodeOf<__nv_bfloat16, 64, E4m3>(const DecodeChoice&,
                                                               const DecodeParams&,
                                                               const LaunchShape&);
extern template Status LaunchDecodeOf<__nv_bfloat16, 128, E4m3>(const DecodeChoice&,
                                                                const DecodeParams&,
                                                                const LaunchShape&);
extern template Status LaunchDecodeOf<__nv_bfloat16, 256, E4m3>(const DecodeChoice&,
                                                                const DecodeParams&,
                                                                const LaunchShape&);
extern template Status LaunchDecodeOf<__half, 64>(const DecodeChoice&, const DecodeParams&,
                                                  const LaunchShape&);
extern template Status LaunchDecodeOf<__half, 128>(const DecodeChoice&, const DecodeParams&,
                                                   const LaunchShape&);
extern template Status LaunchDecodeOf<__half, 256>(const DecodeChoice&, const DecodeParams&,
                                                   const LaunchShape&);
extern template Status LaunchDecodeOf<__half, 64, E4m3>(const DecodeChoice&, const DecodeParams&,
                                                        const LaunchShape&);
extern template Status LaunchDecodeOf<__half, 128, E4m3>(const DecodeChoice&, const DecodeParams&,
                                                         const LaunchShape&);
extern template Status LaunchDecodeOf<__half, 256, E4m3>(const DecodeChoice&, const DecodeParams&,
                                                         const LaunchShape&);

}  // namespace octavo::cuda
