// How the work of a product of few rows is cut: arithmetic of the host, tested without a GPU.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/host_device.h"

namespace octavo::cuda {

inline constexpr int kMaxLinearWarps = 16;
inline constexpr int kMaxLinearTokens = 16;

// Units that a warp's ring holds. A ring of 16 warps fills what a multiprocessor of sm_90 has:
// 192 KiB, six times what its share of memory bandwidth needs in flight.
constexpr int LinearStages(int groups) { return groups == 4 ? 3 : 6; }

struct LinearChoice {
  int groups = 4;       // of 8 weight rows in a tile: 1, 2 or 4
  int token_tiles = 1;  // of 8 rows of x
  int warps = kMaxLinearWarps;
  int ctas = 1;
  int tiles = 0;
};

inline int LinearSharedBytes(const LinearChoice& c) {
  constexpr int kGroupUnitBytes = 8 * 64 * 2;
  const int ring = LinearStages(c.groups) * c.groups * kGroupUnitBytes;
  const int sums = c.groups * 8 * c.token_tiles * 8 * 4;
  return c.warps * (ring + sums);
}

// The tile height that keeps the multiprocessors busiest, the larger among nearly equals; as many
// warps as there are units of k and shared memory for them. Nothing but the number of token tiles
// depends on the rows of x, and that changes no sum.
inline LinearChoice ChooseLinear(int64_t tokens, int64_t n, int64_t units, int multiprocessors,
                                 int shared_per_block) {
  constexpr double kClearlyBetter = 1.04;
  LinearChoice best;
  double best_use = 0.0;
  for (const int groups : {4, 2, 1}) {
    const int64_t tiles = CeilDiv(n, int64_t{8} * groups);
    const int64_t rounds = CeilDiv(tiles, int64_t{multiprocessors});
    const double use =
        static_cast<double>(n) / static_cast<double>(rounds * multiprocessors * groups * 8);
    if (use <= best_use * kClearlyBetter) continue;
    best_use = use;
    best.groups = groups;
    best.tiles = static_cast<int>(tiles);
    best.ctas = static_cast<int>(Min(tiles, int64_t{multiprocessors}));
  }
  best.token_tiles = 2;  // of both forms the larger decides the warps
  while (best.warps > 1 &&
         (best.warps / 2 >= units || LinearSharedBytes(best) > shared_per_block)) {
    best.warps /= 2;
  }
  best.token_tiles = tokens > 8 ? 2 : 1;
  return best;
}

}  // namespace octavo::cuda
