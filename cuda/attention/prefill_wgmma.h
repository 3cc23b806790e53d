// The wgmma prefill kernel's parameters, its compile-time shapes and their launchers.
#pragma once

#include <cuda.h>

#include <type_traits>

#include "attention/prefill.h"
#include "octavo/tensor_view.h"

namespace octavo::cuda {

struct WgmmaParams {
  CUtensorMap cache;    // [B, 2, Hk, bs, D], in boxes of 16 tokens x 64 dims
  CUtensorMap queries;  // [1, 1, N, Hq, D], in boxes of WgmmaTokens x group x 64 dims
  PrefillParams prefill;
};

inline constexpr int kWgmmaRows = 128;      // packed queries of a CTA's tile
inline constexpr int kBoxDims = 64;         // elements of a 128-byte swizzled row
inline constexpr int kSwizzledRow = 128;    // bytes
inline constexpr int kSwizzleBlock = 1024;  // bytes: eight rows, what tiles are aligned to

// A CTA's tile: 128 packed queries against kKeys keys at a time. Two consumer warpgroups own 64
// rows each. In shared memory a tile is parts of 64 dims, each [rows, 128 bytes], swizzled.
template <typename ElementT, int kHeadDimV, int kKeysV, int kStagesV>
struct WgmmaShape {
  using Element = ElementT;
  static constexpr int kHeadDim = kHeadDimV;
  static constexpr int kKeys = kKeysV;
  static constexpr int kStages = kStagesV;
  static constexpr int kThreads = 3 * 128;
  static constexpr int kParts = kHeadDim / kBoxDims;
  static constexpr int kRowPieces = kHeadDim / 8;
  static constexpr int kBoxBytes = kTileTokens * kSwizzledRow;
  static constexpr int kPages = kKeys / kTileTokens;
  static constexpr int kBoxes = kPages * kParts;  // of K or of V
  static constexpr int kQueryPart = kWgmmaRows * kSwizzledRow;
  static constexpr int kQueryBytes = kParts * kQueryPart;
  static constexpr int kKeyPart = kKeys * kSwizzledRow;
  static constexpr int kTileBytes = kParts * kKeyPart;  // of K or of V
  static constexpr int kTickets = 4;
  static constexpr int kTicketBytes = sizeof(PrefillTile);
  static constexpr int kBarriers = 4 * kStages + 3 + 2 * kTickets;

  // Shared memory: Q, the stages of K, those of V, tickets, barriers.
  static constexpr int kKeyAt = kQueryBytes;
  static constexpr int kValueAt = kKeyAt + kStages * kTileBytes;
  static constexpr int kTicketAt = kValueAt + kStages * kTileBytes;
  static constexpr int kBarrierAt = kTicketAt + kTickets * kTicketBytes;
  static constexpr int kSharedBytes = kBarrierAt + kBarriers * 8 + kSwizzleBlock;

  // Registers of a thread: 128 * (24 + 2 * 240) are what 384 threads of 168 start with.
  static constexpr int kLoaderRegisters = 24;
  static constexpr int kConsumerRegisters = 240;

  static_assert(sizeof(Element) == 2);
  static_assert(kHeadDim % kBoxDims == 0 && kKeys % kTileTokens == 0);
  static_assert(kBoxes <= 32, "a lane of the producer warp owns a box");
  static_assert(kKeyPart % kSwizzleBlock == 0 && kQueryPart % kSwizzleBlock == 0);
  static_assert(kSharedBytes <= 227 * 1024, "what sm_90 gives a block");
};

// Wide heads leave registers for 80 keys: 128 sums of O, 40 scores and 20 packed weights a thread.
template <typename T, int kHeadDim>
using WgmmaShapeOf = std::conditional_t<
    kHeadDim == 64, WgmmaShape<T, 64, 128, 4>,
    std::conditional_t<kHeadDim == 128, WgmmaShape<T, 128, 128, 3>, WgmmaShape<T, 256, 80, 2>>>;

// Query tokens of a tile, and the keys that it takes at a time.
inline int WgmmaTokens(int group) { return kWgmmaRows / group; }
inline int WgmmaKeys(int head_dim) {
  return head_dim > 128 ? WgmmaShapeOf<__half, 256>::kKeys : WgmmaShapeOf<__half, 128>::kKeys;
}
static_assert(WgmmaShapeOf<__half, 64>::kKeys == WgmmaShapeOf<__half, 128>::kKeys);

// Queries [N, Hq, D] as the tensor map sees them.
TensorView MappedQueries(const TensorView& q);

// REQUIRES: FitsTensorMap of the cache and of MappedQueries(q), compute capability 9.0, a plan of
// tiles of WgmmaTokens.
Status LaunchWgmmaPrefill(const TensorView& q, const TensorView& cache, const PrefillParams& p,
                          const LaunchShape& launch);

// One instantiation each, in prefill_wgmma_<head dim>_<dtype>.cu.
template <typename T, int kHeadDim>
Status LaunchWgmmaOf(const WgmmaParams& p, const LaunchShape& launch);
extern template Status LaunchWgmmaOf<__nv_bfloat16, 64>(const WgmmaParams&, const LaunchShape&);
extern template Status LaunchWgmmaOf<__nv_bfloat16, 128>(const WgmmaParams&, const LaunchShape&);
extern template Status LaunchWgmmaOf<__nv_bfloat16, 256>(const WgmmaParams&, const LaunchShape&);
extern template Status LaunchWgmmaOf<__half, 64>(const WgmmaParams&, const LaunchShape&);
extern template Status LaunchWgmmaOf<__half, 128>(const WgmmaParams&, const LaunchShape&);
extern template Status LaunchWgmmaOf<__half, 256>(const WgmmaParams&, const LaunchShape&);

}  // namespace octavo::cuda
