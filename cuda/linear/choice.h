// How the work of a product of few rows is cut: arithmetic of the host, tested without a GPU.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/host_device.h"

namespace octavo::cuda {

inline constexpr int kMaxLinearWarps = 16;
inline constexpr int kMaxLinearTokens = 16;
inline constexpr int kLinearUnit = 64;  // k of a unit: what a warp takes at a time

// Rows of x that a stage holds: none but those there are, unless there is a second tile of them.
constexpr int LinearStagedTokens(int token_tiles, int tokens) {
  return token_tiles == 1 ? tokens : 8 * token_tiles;
}

// A stage holds a unit of 8 * groups weight rows and of so many rows of x.
constexpr int LinearStageBytes(int groups, int staged_tokens) {
  return (8 * groups + staged_tokens) * kLinearUnit * 2;
}

// Warps of a CTA, and most stages of a warp's ring: some 190 KiB in all, which is what a
// multiprocessor of sm_90 has and six times what its share of memory bandwidth needs in flight. A
// ring is no larger than what its warp ever holds: what is left over lets the kernel behind begin,
// and a product there reads its weights while this one computes.
constexpr int LinearWarps(int groups) { return groups == 4 ? 8 : kMaxLinearWarps; }
constexpr int LinearStages(int groups, int token_tiles) {
  if (groups == 4) return token_tiles == 1 ? 5 : 4;
  if (groups == 2) return token_tiles == 1 ? 4 : 3;
  return token_tiles == 1 ? 6 : 4;
}

// A product of m rows, to n columns, over so many units of k.
struct LinearProblem {
  int64_t m = 1;
  int64_t n = 0;
  int64_t units = 0;
  bool normed = false;
  bool gated = false;  // twice as many rows of the weight as columns
};

struct LinearChoice {
  int groups = 4;       // of 8 weight rows in a tile: 1, 2 or 4
  int token_tiles = 1;  // of 8 rows of x
  int warps = 1;
  int team_warps = 1;  // warps that share a tile
  int ctas = 1;
  int tiles = 0;
  int norm_units = 0;  // of k, where the inputs are normed
  int stages = 1;      // of a warp's ring
  int staged_tokens = 8;

  int ring_bytes() const { return stages * LinearStageBytes(groups, staged_tokens); }
  int shared_bytes() const {
    const int sums = groups * 8 * token_tiles * 8 * 4;  // of a warp
    const int product = warps * (ring_bytes() + sums);
    if (norm_units == 0) return product;
    return product + norm_units * kLinearUnit * 2 + warps * token_tiles * 8 * 4;
  }
};

// What a choice costs, in nanoseconds of a multiprocessor's share of an H200's memory.
inline double LinearCost(const LinearChoice& c, int64_t units, int multiprocessors) {
  constexpr double kBytesANanosecond = 33.0;
  constexpr double kTileEnd = 450.0;      // barrier and stores, hidden by the other teams
  constexpr double kInputsOfGroup = 0.5;  // x from L2, as a part of one row group's weight
  const int teams = c.warps / c.team_warps;
  const auto rounds = static_cast<double>(CeilDiv(c.tiles, multiprocessors * teams));
  const double group_bytes = static_cast<double>(units) * 8 * kLinearUnit * 2;
  return rounds * teams * (c.groups + kInputsOfGroup) * group_bytes / kBytesANanosecond +
         rounds * kTileEnd / teams;
}

// Stages that a warp fills: all units of its tiles, if they are few.
inline int FilledStages(const LinearChoice& c, int64_t units) {
  const int64_t rounds = CeilDiv(c.tiles, c.ctas * (c.warps / c.team_warps));
  const int64_t filled = rounds * CeilDiv(units, int64_t{c.team_warps});
  return static_cast<int>(Min<int64_t>(filled, LinearStages(c.groups, c.token_tiles)));
}

// The cheapest tile height and number of teams. Nothing but the number of token tiles and the size
// of a ring depends on the rows of x, and those change no sum.
inline LinearChoice ChooseLinear(const LinearProblem& problem, int multiprocessors,
                                 int shared_per_block) {
  const int64_t units = problem.units;
  LinearChoice best;
  double least = 0.0;
  for (const int groups : {4, 2, 1}) {
    if (problem.gated && groups == 1) continue;  // a gate and what it opens
    LinearChoice c;
    c.groups = groups;
    c.token_tiles = 2;  // the form that takes more memory
    c.staged_tokens = LinearStagedTokens(2, 16);
    c.stages = LinearStages(groups, 2);
    c.norm_units = problem.normed ? static_cast<int>(units) : 0;
    c.warps = LinearWarps(groups);
    while (c.warps > 1 && c.shared_bytes() > shared_per_block) c.warps /= 2;
    c.tiles = static_cast<int>(CeilDiv(problem.n, int64_t{8} * groups / (problem.gated ? 2 : 1)));
    for (const int teams : {1, 2, 4, 8}) {
      c.team_warps = c.warps / teams;
      if (c.team_warps < 1) continue;
      // A warp without a unit would only wait.
      if (c.team_warps > units && c.team_warps > 1) continue;
      const double cost = LinearCost(c, units, multiprocessors);
      if (best.tiles != 0 && cost >= least) continue;
      best = c;
      least = cost;
    }
  }
  best.ctas = static_cast<int>(Min<int64_t>(best.tiles, multiprocessors));
  best.token_tiles = problem.m > 8 ? 2 : 1;
  best.staged_tokens = LinearStagedTokens(best.token_tiles, static_cast<int>(problem.m));
  best.stages = FilledStages(best, units);
  return best;
}

}  // namespace octavo::cuda
