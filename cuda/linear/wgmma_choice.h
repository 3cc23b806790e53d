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
// And, where x was left by a product as half of a norm, a float for each row of x.
inline constexpr int kWideScaleBytes = kMaxWideTokens * 4;
inline constexpr int kWideChunk = 32;  // tokens that a warpgroup turns and stores at once

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

// Two warpgroups with this many sums have registers to spare only if the others give theirs up.
constexpr bool WideMovesRegisters(int rows, int tokens) {
  return WideWarpgroups(rows) == 2 && rows / 128 * (tokens / 2) >= 96;
}

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
  bool half_norms = false;  // x is half of a norm, or half of one is left
};

inline int64_t WideUnits(const WideChoice& c, int64_t k) {
  return CeilDiv(k, WideBlocks(c.rows, c.tokens) * kWideBlock);
}

inline int64_t WideTiles(const WideChoice& c, const WideProblem& problem) {
  return CeilDiv(problem.n, c.rows) * CeilDiv(problem.m, c.tokens);
}

// Rows of x that each tile takes, the last one fewer: alike, in groups of eight, because copies
// that reach beyond x are slow. A tile of 128 has 96 of 192.
constexpr int WideTileTokens(int64_t m, int tokens) {
  return static_cast<int>(CeilDiv(CeilDiv(m, CeilDiv(m, tokens)), 8) * 8);
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
// some of which larger ones leave over: 38 of three and 28 of four began at once, not 40 and 32.
constexpr int WideClustersAtOnce(int splits, int multiprocessors) {
  const int usable = splits <= 2 ? multiprocessors : multiprocessors * 19 / 22;
  return Max(1, usable / splits);
}

// The clusters that a product may have: where k is cut one for each tile, else no more than there
// are multiprocessors, or so few that all do as many tiles.
struct WideClusters {
  int most, even;
};

inline WideClusters WideClustersOf(const WideChoice& c, const WideProblem& problem,
                                   int multiprocessors) {
  const auto tiles = static_cast<int>(WideTiles(c, problem));
  if (c.splits > 1) return {tiles, tiles};
  return {Min(tiles, multiprocessors), CeilDiv(tiles, CeilDiv(tiles, multiprocessors))};
}

// What an H200 does in a nanosecond, and what takes how many: fitted by `bench_fit_linear` to what
// `bench_linear all` printed there, where the choice was 0.9 % slower than the fastest on average
// and 7 % at most (bench/results/linear_h200.txt), of tiles that still reached beyond x. What every
// choice takes is left out.
struct WideRates {
  double memory = 4320.0;    // bytes, with a CTA on each multiprocessor
  double fewer = 0.207;      // with fewer, by this power of their share
  double cache = 11500.0;    // bytes
  double port = 142.0;       // bytes into a multiprocessor
  double outside = 3.89;     // ns a row, of 64 k, of a box that reaches beyond x
  double products = 7950.0;  // FLOPs of a multiprocessor
  double block = 112.0;      // ns: at least, of 64 k of a tile
  double tile = 187.0;       // ns
  double store = 0.0403;     // ns an element of a tile
  double gate = 0.0456;      // and with a gate
  double exchange = 0.0823;  // and where k is cut
  double cluster = 2860.0;   // ns where k is cut
};

// Two that share something, such as the memory's and the multiprocessors' time: the longer one, and
// more where they are alike.
inline double WideTogether(double a, double b) { return std::cbrt(a * a * a + b * b * b); }

// Nanoseconds of 64 k of a tile while so many CTAs read.
inline double WideBlockCost(const WideChoice& c, const WideProblem& problem, double ctas,
                            const WideRates& rates) {
  constexpr double kRowBytes = kWideBlock * 2;
  const auto token_tiles = static_cast<double>(CeilDiv(problem.m, c.tokens));
  const auto m = static_cast<double>(problem.m);
  const int tokens = WideTileTokens(problem.m, c.tokens);
  const double last = m - (token_tiles - 1.0) * tokens, rows = c.rows * kRowBytes / rates.port;
  // Rows that do not exist are slower to fill than those that do are to copy.
  const double copies = Max(rows + last * kRowBytes / rates.port + (tokens - last) * rates.outside,
                            token_tiles > 1.0 ? rows + tokens * kRowBytes / rates.port : 0.0);
  const double products = 2.0 * c.rows * c.tokens * kWideBlock / rates.products;
  return WideTogether(Max(rates.block, Max(products, copies)),
                      ctas * (c.rows + m / token_tiles) * kRowBytes / rates.cache);
}

// What a choice costs, in nanoseconds. Its ring does not count.
inline double WideCost(const WideChoice& c, const WideProblem& problem, int multiprocessors,
                       const WideRates& rates = {}) {
  const int64_t tiles = WideTiles(c, problem);
  const int64_t at_once = Min(WideClustersAtOnce(c.splits, multiprocessors), c.clusters);
  const int64_t full = tiles / at_once, left = tiles % at_once;
  const auto ctas = static_cast<double>(at_once * c.splits);
  const int per_unit = WideBlocks(c.rows, c.tokens);
  const auto blocks = static_cast<double>(CeilDiv(WideUnits(c, problem.k), c.splits) * per_unit);
  double products = static_cast<double>(full) * WideBlockCost(c, problem, ctas, rates);
  if (left > 0) {
    products += WideBlockCost(c, problem, static_cast<double>(left * c.splits), rates);
  }
  const double weight = static_cast<double>(problem.n * problem.k) * 2;
  const double reading = weight / rates.memory * std::pow(multiprocessors / ctas, rates.fewer);
  const double element =
      rates.store + (problem.gated ? rates.gate : 0.0) + (c.splits > 1 ? rates.exchange : 0.0);
  const int tokens = WideTileTokens(problem.m, c.tokens);
  return WideTogether(reading, blocks * products) +
         static_cast<double>(full + (left > 0 ? 1 : 0)) * (rates.tile + element * c.rows * tokens) +
         (c.splits > 1 ? rates.cluster : 0.0);
}

// Whether the rates were fitted to such choices: of tiles that these rows fill by more than half,
// of cuts that leave no multiprocessor more than two CTAs and no more than two thirds of them idle.
inline bool WideIsKnown(const WideChoice& c, const WideProblem& problem, int multiprocessors) {
  if (c.tokens > 32 && c.tokens >= 2 * problem.m) return false;
  if (problem.m > 4 * c.tokens || c.splits > WideUnits(c, problem.k)) return false;
  const int64_t ctas = WideTiles(c, problem) * c.splits;
  return ctas >= multiprocessors / 3 && (c.splits == 1 || ctas <= 2 * multiprocessors);
}

// The cheapest that is known, or where none is the cheapest.
inline WideChoice ChooseWide(const WideProblem& problem, int multiprocessors,
                             int shared_per_block) {
  WideChoice best;
  double least = 0.0;
  bool known = false;
  const auto compare = [&](const WideChoice& c) {
    const bool is_known = WideIsKnown(c, problem, multiprocessors);
    if (known && !is_known) return;
    const double cost = WideCost(c, problem, multiprocessors);
    if (is_known == known && least != 0.0 && cost >= least) return;
    best = c;
    least = cost;
    known = is_known;
  };
  for (const WideTile& tile : kWideTiles) {
    if (problem.half_norms && WideMovesRegisters(tile.rows, tile.tokens)) continue;
    for (int splits = 1; splits <= kMaxWideCluster; ++splits) {
      WideChoice c{tile.rows, tile.tokens, splits, 0};
      if (splits > WideUnits(c, problem.k)) break;
      const WideClusters clusters = WideClustersOf(c, problem, multiprocessors);
      c.clusters = clusters.most;
      compare(c);
      c.clusters = clusters.even;
      if (clusters.even != clusters.most) compare(c);
    }
  }
  best.stages = WideStages(best, problem, shared_per_block);
  return best;
}

}  // namespace octavo::cuda
