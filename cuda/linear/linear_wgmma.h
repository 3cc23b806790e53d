// The parameters of the product of some rows on wgmma, and its launchers.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "common/launch.h"
#include "linear/wgmma_choice.h"
#include "octavo/cuda_ops.h"
#include "octavo/ops.h"

namespace octavo::cuda {

struct WideParams {
  CUtensorMap weight;  // [K / 64, N / 16, 2, 8, 64]: eight rows of the gate, eight they open
  CUtensorMap x;       // [K / 64, 1, 1, M, 64]
  char* out;
  const char* bias;    // or null
  int64_t out_stride;  // bytes
  int32_t m, n;        // n: columns of out
  int32_t units;       // of k
  int32_t stages;
  int32_t splits;  // CTAs that share a tile's k: a cluster
  int32_t token_tiles;
  int32_t tile_tokens;  // WideTileTokens
  int32_t tiles;
  bool weight_ready;  // as LinearParams
  bool add;
  Gate gate;
  // Of x where it is half of a norm: sums of squares, floats between rows and how many there are.
  const float* squares;  // or null
  int64_t squares_stride;
  int32_t squares_count;
  float eps;
  // What is left for the next product: out times norm + norm_offset, and its sums of squares.
  char* scaled;  // or null
  const char* norm;
  float* left;
  int64_t scaled_stride, left_stride;  // bytes, floats
  float norm_offset;
};

// A tile of kWarpgroups * kRowTiles * 64 rows of the weight and kTokens rows of x.
template <typename ElementT, int kWarpgroupsV, int kRowTilesV, int kTokensV>
struct WideShape {
  using Element = ElementT;
  static constexpr int kWarpgroups = kWarpgroupsV;
  static constexpr int kRowTiles = kRowTilesV;  // of a warpgroup: the m side of a product
  static constexpr int kTokens = kTokensV;
  static constexpr int kRows = kWarpgroups * kRowTiles * 64;
  static constexpr int kSums = kTokens / 2;  // of a thread and row tile
  static constexpr int kConsumers = kWarpgroups * 128;
  // Others give registers up as a whole warpgroup.
  static constexpr bool kMovesRegisters = WideMovesRegisters(kRows, kTokens);
  // Whether products leave half of a norm for each other: in float16 it might not be finite, and
  // where registers are moved none are left for it.
  static constexpr bool kHalfNorms = std::is_same_v<Element, __nv_bfloat16> && !kMovesRegisters;
  static constexpr int kCopyRegisters = 40, kSumRegisters = 232;  // of 168 a thread at first
  static constexpr int kThreads = kConsumers + (kMovesRegisters ? 128 : 32);
  static constexpr int kBlocks = WideBlocks(kRows, kTokens);  // of a stage
  static constexpr int kWeightBlock = kRows * kWideBlock * 2;
  static constexpr int kInputBlock = kTokens * kWideBlock * 2;
  static constexpr int kWeightBytes = kBlocks * kWeightBlock;
  static constexpr int kStageBytes = WideStageBytes(kRows, kTokens);
  // Chunks that a CTA stores: of a tile, and at most where k is cut.
  static constexpr int kChunks = kRowTiles * (kTokens / kWideChunk);
  static constexpr int kCutChunks = kRowTiles * CeilDiv(WideGroups(kTokens, 2) * 8, kWideChunk);
  static constexpr bool kApart = WideApart(kRows, kTokens);
  static constexpr int kTurnedBytes = WideTurnedBytes(kRows);
  // Whose `add` is read while products run, where registers are left.
  static constexpr int kChunksAhead = kWarpgroups == 3 ? 1 : 2;
  // Where registers always allow it the next product's CTAs stand beside this one's and read
  // weights ahead.
  static constexpr int kCtas = kWarpgroups == 1 && kRowTiles * kSums <= 64 ? 2 : 1;

  static_assert(sizeof(Element) == 2);
  static_assert(kTokens % kWideChunk == 0 && kTokens <= 256, "the n side of a product");
  static_assert(kRowTiles * kSums <= 128, "sums of a thread");
  static_assert(kInputBlock % 1024 == 0 && kWeightBlock % 1024 == 0, "swizzled blocks");
  static_assert(kWarpgroups == WideWarpgroups(kRows));
};

// REQUIRES: TakesWide(a), and a tile that is compiled.
Status LaunchWide(const LinearArgs& a, const WideChoice& choice, Stream stream);

// Whether the copy engine and the stores can take the operands: K a multiple of 64, N of 16, rows
// that begin on 16 bytes, no whole norm. Does not ask for the device.
bool TakesWide(const LinearArgs& a);

// One instantiation each, in linear_wgmma_<dtype>.cu.
template <typename T>
Status LaunchWideOf(const WideChoice& choice, const WideParams& p, cudaStream_t stream);
extern template Status LaunchWideOf<__nv_bfloat16>(const WideChoice&, const WideParams&,
                                                   cudaStream_t);
extern template Status LaunchWideOf<__half>(const WideChoice&, const WideParams&, cudaStream_t);

}  // namespace octavo::cuda
