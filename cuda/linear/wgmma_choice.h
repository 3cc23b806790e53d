// How the work of a product of some rows is cut for wgmma: arithmetic of the host, tested without a
// GPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace octavo::cuda {

inline constexpr int kWideBlock = 64;       // k of the 128 bytes of a swizzled row
inline constexpr int kMaxWideTokens = 512;  // of x: from there on a BLAS is as fast
inline constexpr int kMaxWideCluster = 4;   // CTAs: more cost more than the streaming they save
inline constexpr int kMaxWideStages = 16;
inline constexpr int kWideHead = 1024;  // bytes in front of the ring: its barriers
inline constexpr int kWideChunk = 32;   // tokens that a warpgroup turns and stores at once

// Rows of the weight and rows of x that a tile has, the CTAs that share the tile's k, the stages of
// a CTA's ring, and the most clusters: each does tiles until none is left.
struct WideChoice {
  int rows = 128;
  int tokens = 64;
  int splits = 1;
  int stages = 4;
  int clusters = 1 << 30;
};

// Blocks of k in a stage, its unit: small tiles would wait for barriers more than for copies.
constexpr int WideBlocks(int rows, int tokens) { return rows + tokens <= 192 ? 2 : 1; }

constexpr int WideStageBytes(int rows, int tokens) {
  return (rows + tokens) * WideBlocks(rows, tokens) * kWideBlock * 2;
}

// That multiply, 64 or 128 rows each.
constexpr int WideWarpgroups(int rows) { return rows <= 192 ? rows / 64 : rows / 128; }

// Two chunks of 64 columns for each warpgroup.
constexpr int WideTurnedBytes(int rows) { return WideWarpgroups(rows) * 2 * kWideChunk * 64 * 2; }

// Groups of eight tokens of a tile that each CTA of a cluster adds and stores.
constexpr int WideGroups(int tokens, int splits) { return CeilDiv(CeilDiv(tokens, 8), splits); }

// Whether the sums that the CTAs of a cluster send each other lie behind the ring, as they do where
// the ring stays deep enough: else they lie where it was, and are sent when all have read theirs.
constexpr bool WideApart(int rows, int tokens) { return rows * tokens <= 192 * 64; }

// The last term lets the kernel align what it is given.
constexpr int WideSharedBytes(const WideChoice& c) {
  const int ring = c.stages * WideStageBytes(c.rows, c.tokens);
  const int sums = c.splits > 1 ? c.splits * WideGroups(c.tokens, c.splits) * 8 * c.rows * 4 : 0;
  const int both = WideApart(c.rows, c.tokens) ? ring + sums : Max(ring, sums);
  return kWideHead + WideTurnedBytes(c.rows) + both + 1024;
}

// The tiles that are compiled.
struct WideTile {
  int rows, tokens;
};
inline constexpr WideTile kWideTiles[] = {{64, 32},   {64, 64},   {64, 128},  {64, 256},  {128, 32},
                                          {128, 64},  {128, 128}, {128, 192}, {128, 256}, {192, 64},
                                          {192, 128}, {256, 64},  {256, 128}};

// A product of m rows of k, with n rows of the weight.
struct WideProblem {
  int64_t m = 17;
  int64_t n = 0;
  int64_t k = 0;
  bool gated = false;
  bool add = false;
};

inline int64_t WideUnits(const WideChoice& c, int64_t k) {
  return CeilDiv(k, WideBlocks(c.rows, c.tokens) * kWideBlock);
}

inline int64_t WideTiles(const WideChoice& c, const WideProblem& problem) {
  return CeilDiv(problem.n, c.rows) * CeilDiv(problem.m, c.tokens);
}

// The most stages that fit, and no more than a CTA has units in all its tiles.
inline int WideStages(WideChoice c, const WideProblem& problem, int shared_per_block) {
  c.stages = kMaxWideStages;
  while (c.stages > 2 && WideSharedBytes(c) > shared_per_block) --c.stages;
  const int64_t tiles =
      CeilDiv(WideTiles(c, problem), Min<int64_t>(WideTiles(c, problem), c.clusters));
  return static_cast<int>(
      Min(int64_t{c.stages}, tiles * CeilDiv(WideUnits(c, problem.k), c.splits)));
}

// Clusters that are on the device at once. One lies within a group of 16 or 18 multiprocessors,
// some of which larger ones leave over: of 32 clusters of four not all began at once.
constexpr int WideClustersAtOnce(int splits, int multiprocessors) {
  const int usable = splits <= 2   ? multiprocessors
                     : splits == 3 ? multiprocessors * 10 / 11
                                   : multiprocessors * 28 / 33;
  return Max(1, usable / splits);
}

// CTAs that a multiprocessor has one after another, or tiles of one CTA.
inline int64_t WideRounds(const WideChoice& c, const WideProblem& problem, int multiprocessors) {
  return CeilDiv(WideTiles(c, problem), WideClustersAtOnce(c.splits, multiprocessors));
}

// What an H200 does in a nanosecond, and what takes how many. `bench_fit_linear` fits them to what
// `bench_linear all` prints. The rates and `block` are of such a fit, to products without gate and
// sum, before tiles were turned in registers (where they choose within 0.1 % of the fastest); the
// others are estimates until a GPU has timed what follows a tile's products now.
struct WideRates {
  double memory = 3700.0, cache = 11500.0;        // bytes
  double port = 97.0;                             // bytes into a multiprocessor
  double products = 6700.0;                       // FLOPs of a multiprocessor
  double block = 86.0;                            // ns: at least, of 64 k of a tile
  double start = 1000.0, tile = 400.0;            // ns
  double store = 0.015, gate = 0.01, add = 0.01;  // ns an element of a tile
  double cluster = 1000.0, exchange = 0.04;       // ns, and an element where k is cut
};

// What a choice costs, in nanoseconds.
inline double WideCost(const WideChoice& c, const WideProblem& problem, int multiprocessors,
                       const WideRates& rates = {}) {
  const auto token_tiles = static_cast<double>(CeilDiv(problem.m, c.tokens));
  const auto tiles = static_cast<double>(WideTiles(c, problem));
  const auto rounds = static_cast<double>(WideRounds(c, problem, multiprocessors));
  const auto tokens = static_cast<double>(Min<int64_t>(problem.m, c.tokens));
  const auto k = static_cast<double>(problem.k);
  const double weight = static_cast<double>(problem.n) * k * 2;
  const double bytes =
      Max(weight / rates.memory, (weight * token_tiles + tiles * tokens * k * 2) / rates.cache);
  const double products = 2.0 * c.rows * c.tokens * kWideBlock / rates.products;
  const double copies = 2.0 * (c.rows + c.tokens) * kWideBlock / rates.port;
  const double block = Max(rates.block, Max(products, copies));
  const double blocks = std::ceil(k / kWideBlock / c.splits);
  const double element = rates.store + (problem.gated ? rates.gate : 0.0) +
                         (problem.add ? rates.add : 0.0) + (c.splits > 1 ? rates.exchange : 0.0);
  return rates.start + Max(bytes, rounds * blocks * block) +
         rounds * (rates.tile + element * c.rows * tokens) + (c.splits > 1 ? rates.cluster : 0.0);
}

// As many clusters as the multiprocessors need for the tiles, all with as many of them.
inline int WideClusters(const WideChoice& c, const WideProblem& problem, int multiprocessors) {
  const int64_t tiles = WideTiles(c, problem);
  if (c.splits > 1) return static_cast<int>(tiles);
  return static_cast<int>(CeilDiv(tiles, WideRounds(c, problem, multiprocessors)));
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
  best.clusters = WideClusters(best, problem, multiprocessors);
  best.stages = WideStages(best, problem, shared_per_block);
  return best;
}

}  // namespace octavo::cuda
