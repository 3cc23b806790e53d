// How the work of a product of some rows is cut for wgmma: arithmetic of the host, tested without a
// GPU.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace octavo::cuda {

inline constexpr int kWideUnit = 64;        // k of a stage: the 128 bytes of a swizzled row
inline constexpr int kMaxWideTokens = 512;  // of x: from there on a BLAS is as fast
inline constexpr int kMaxWideCluster = 8;   // CTAs of a portable cluster
inline constexpr int kMaxWideStages = 16;
inline constexpr int kWideHead = 1024;  // bytes in front of the ring: its barriers

// Rows of the weight and rows of x that a CTA's tile has, the CTAs that share the tile's k, the
// stages of a CTA's ring, and the tiles that lie side by side and load their x for each other.
struct WideChoice {
  int rows = 128;
  int tokens = 64;
  int splits = 1;
  int stages = 4;
  int sharers = 1;
};

constexpr int WideStageBytes(int rows, int tokens) { return (rows + tokens) * kWideUnit * 2; }

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

// A product of m rows, with n rows of the weight, over so many units of k.
struct WideProblem {
  int64_t m = 17;
  int64_t n = 0;
  int64_t units = 0;
};

// The most stages that fit, and no more than the CTA has units.
inline int WideStages(WideChoice c, int64_t units, int shared_per_block) {
  c.stages = kMaxWideStages;
  while (c.stages > 2 && WideSharedBytes(c) > shared_per_block) --c.stages;
  return static_cast<int>(Min<int64_t>(c.stages, CeilDiv(units, c.splits)));
}

// What a choice costs, in nanoseconds of a multiprocessor of an H200.
inline double WideCost(const WideChoice& c, const WideProblem& problem, int multiprocessors) {
  constexpr double kBytesANanosecond = 33.0;  // of weights, its share of memory's
  constexpr double kInputs = 0.5;             // of x from L2, as a part of as many bytes of weights
  constexpr double kProductsANanosecond = 2800.0;
  constexpr double kTileEnd = 900.0;
  constexpr double kSumsANanosecond = 60.0;
  const int64_t tiles = CeilDiv(problem.n, c.rows) * CeilDiv(problem.m, c.tokens);
  const auto rounds = static_cast<double>(CeilDiv(tiles * c.splits, multiprocessors));
  const auto k = static_cast<double>(CeilDiv(problem.units, c.splits) * kWideUnit);
  const double bytes = k * 2 * (c.rows + kInputs * c.tokens) / kBytesANanosecond;
  const double products = k * c.rows * c.tokens / kProductsANanosecond;
  const double sums = c.rows * c.tokens / kSumsANanosecond * (c.splits > 1 ? 2 : 1);
  return rounds * (Max(bytes, products) + sums + kTileEnd);
}

inline WideChoice ChooseWide(const WideProblem& problem, int multiprocessors,
                             int shared_per_block) {
  WideChoice best;
  double least = 0.0;
  for (const WideTile& tile : kWideTiles) {
    for (int splits = 1; splits <= kMaxWideCluster && splits <= problem.units; splits *= 2) {
      const WideChoice c{tile.rows, tile.tokens, splits, 0, 1};
      const double cost = WideCost(c, problem, multiprocessors);
      if (least != 0.0 && cost >= least) continue;
      best = c;
      least = cost;
    }
  }
  best.stages = WideStages(best, problem.units, shared_per_block);
  return best;
}

}  // namespace octavo::cuda
