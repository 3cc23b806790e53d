// How the work of a product of some rows is cut for wgmma: arithmetic of the host, tested without a
// GPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace octavo::cuda {

inline constexpr int kWideBlock = 64;       // k of the 128 bytes of a swizzled row
inline constexpr int kMaxWideTokens = 512;  // of x: from there on a BLAS is as fast
inline constexpr int kMaxWideCluster = 8;   // CTAs of a portable cluster
inline constexpr int kMaxWideStages = 16;
inline constexpr int kWideHead = 1024;  // bytes in front of the ring: its barriers

// Rows of the weight and rows of x that a CTA's tile has, the CTAs that share the tile's k, and the
// stages of a CTA's ring.
struct WideChoice {
  int rows = 128;
  int tokens = 64;
  int splits = 1;
  int stages = 4;
};

// Blocks of k in a stage, its unit: small tiles would wait for barriers more than for copies.
constexpr int WideBlocks(int rows, int tokens) { return rows + tokens <= 192 ? 2 : 1; }

constexpr int WideStageBytes(int rows, int tokens) {
  return (rows + tokens) * WideBlocks(rows, tokens) * kWideBlock * 2;
}

// Floats from one token's sums to the next one's: lanes that write neighbouring tokens meet in no
// bank.
constexpr int WideSumStride(int rows) { return rows + 4; }

// The sums lie where the ring was. The last term lets the kernel align what it is given.
constexpr int WideSharedBytes(const WideChoice& c) {
  const int ring = c.stages * WideStageBytes(c.rows, c.tokens);
  const int sums = c.tokens * WideSumStride(c.rows) * 4;
  return kWideHead + Max(ring, sums) + 1024;
}

// The tiles that are compiled.
struct WideTile {
  int rows, tokens;
};
inline constexpr WideTile kWideTiles[] = {{64, 32},   {64, 64},  {64, 128},  {64, 256},
                                          {128, 32},  {128, 64}, {128, 128}, {128, 192},
                                          {128, 256}, {256, 64}, {256, 128}};

// A product of m rows of k, with n rows of the weight.
struct WideProblem {
  int64_t m = 17;
  int64_t n = 0;
  int64_t k = 0;
};

inline int64_t WideUnits(const WideChoice& c, int64_t k) {
  return CeilDiv(k, WideBlocks(c.rows, c.tokens) * kWideBlock);
}

// The most stages that fit, and no more than the CTA has units.
inline int WideStages(WideChoice c, int64_t k, int shared_per_block) {
  c.stages = kMaxWideStages;
  while (c.stages > 2 && WideSharedBytes(c) > shared_per_block) --c.stages;
  return static_cast<int>(Min<int64_t>(c.stages, CeilDiv(WideUnits(c, k), c.splits)));
}

// What a choice costs on an H200, in nanoseconds. Fitted to `bench_linear all` of 16 to 128 rows,
// where the cheapest choice is on average 3 % slower than the fastest.
inline double WideCost(const WideChoice& c, const WideProblem& problem, int multiprocessors) {
  constexpr double kMemory = 4200.0, kCache = 10600.0;  // bytes a nanosecond
  constexpr double kProducts = 3800.0;                  // FLOPs a nanosecond of a multiprocessor
  constexpr double kBlock = 73.0;                       // at least, of 64 k of a tile
  constexpr double kRound = 2750.0, kCluster = 490.0;
  constexpr double kSum = 0.22, kSharedSum = 0.11;  // of an element, and of one in a cluster
  const auto token_tiles = static_cast<double>(CeilDiv(problem.m, c.tokens));
  const auto tiles = static_cast<double>(CeilDiv(problem.n, c.rows)) * token_tiles;
  const double rounds = std::ceil(tiles * c.splits / multiprocessors);
  const auto tokens = static_cast<double>(Min<int64_t>(problem.m, c.tokens));
  const auto k = static_cast<double>(problem.k);
  const double weight = static_cast<double>(problem.n) * k * 2;
  const double bytes =
      Max(weight / kMemory, (weight * token_tiles + tiles * tokens * k * 2) / kCache);
  const double block = Max(kBlock, 2.0 * c.rows * c.tokens * kWideBlock / kProducts);
  const double blocks = std::ceil(k / kWideBlock / c.splits);
  const double sums = c.rows * tokens * (kSum + (c.splits > 1 ? kSharedSum : 0.0));
  return rounds * (kRound + sums) + (c.splits > 1 ? kCluster : 0.0) +
         Max(bytes, rounds * blocks * block);
}

inline WideChoice ChooseWide(const WideProblem& problem, int multiprocessors,
                             int shared_per_block) {
  WideChoice best;
  double least = 0.0;
  for (const WideTile& tile : kWideTiles) {
    for (int splits = 1; splits <= kMaxWideCluster; ++splits) {
      const WideChoice c{tile.rows, tile.tokens, splits, 0};
      if (splits > WideUnits(c, problem.k)) break;
      const double cost = WideCost(c, problem, multiprocessors);
      if (least != 0.0 && cost >= least) continue;
      best = c;
      least = cost;
    }
  }
  best.stages = WideStages(best, problem.k, shared_per_block);
  return best;
}

}  // namespace octavo::cuda
