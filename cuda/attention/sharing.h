// Which decode rows read a prefix that they have in common together, as arithmetic that host and
// device share.
//
// Rows of one query that stand next to each other in a step and whose lines of the block table
// begin alike form a run. The keys that all of a run share are computed once for all its queries:
// as tiles of the prefill kernel, which takes the run's rows for a row's tokens, hides nothing and
// leaves softmax states. The decode kernel works on what is left of each row and merges.
//
// Groups of as many rows as a tile has tokens, aligned in the order of rows, are looked at one by
// one, so that a thread each finds the runs. Where the runs' tiles would leave multiprocessors
// without work, each run's keys are cut into parts, which are tiles and states of their own. A run
// is taken where such a tile ends before everybody's share of the step would have ended.
#pragma once

#include "attention/schedule.h"

namespace octavo::cuda {

// What a run has to save for states in memory, and tiles whose other rows are empty, to be worth
// it [to be measured].
inline constexpr int kLeastSharedTokens = 256;
inline constexpr int kLeastSharingRows = 4;
inline constexpr int kMostComparedBlocks = 2048;  // of two rows: 32k tokens of blocks of 16
// Decode tiles that a multiprocessor reads while it computes 16 shared keys of a tile: 0.7 by the
// times of both kernels apart (ADR 38), and the rest for waiting on each other; and while it begins
// a tile and merges states [to be measured].
inline constexpr int kSharedKeysCost = 2;
inline constexpr int kSharedTileCost = 32;
inline constexpr int kLeastPartTokens = 256;
inline constexpr int kMostParts = 16;
inline constexpr int kSharedStates = 1024;  // rows times parts that memory is kept for, or the rows
static_assert(kLeastSharedTokens % kTileTokens == 0);

// Whether a row may share: it is decoded, and its one query stands behind the shared keys.
OCTAVO_HOST_DEVICE bool MayShare(int32_t queries, int32_t length) {
  return queries == 1 && length > 0;
}

// The tokens of a row of this length that may be shared: whole tiles, and at least one is left.
OCTAVO_HOST_DEVICE int32_t MostShared(int32_t length) {
  return (length - 1) / kTileTokens * kTileTokens;
}

// The states of a plan: as many for each of its rows.
OCTAVO_HOST_DEVICE int32_t SharedStates(const PlanShape& s) { return Max(s.rows, kSharedStates); }

// The most parts of each of `runs` runs: together they give every multiprocessor at most one tile,
// unless a part each is more.
OCTAVO_HOST_DEVICE int32_t MostParts(const PlanShape& s, int32_t runs) {
  const int32_t fill = s.multiprocessors / (Max(runs, 1) * s.kv_heads);
  return Max(1, Min(Min(fill, kMostParts), SharedStates(s) / s.rows));
}

// The shared keys of a part: whole groups of what the prefill kernel takes at a time. The last part
// may have fewer.
OCTAVO_HOST_DEVICE int32_t PartTokens(const PlanShape& s, int32_t tokens, int32_t most_parts) {
  const int32_t parts = Max(1, Min(most_parts, tokens / kLeastPartTokens));
  return CeilDiv(CeilDiv(tokens, parts), s.shared_keys) * s.shared_keys;
}

// Whether a tile of this many shared keys ends before the step's decode tiles would, if nothing
// were shared.
OCTAVO_HOST_DEVICE bool WorthSharing(const PlanShape& s, int32_t tokens, int64_t decode_tiles) {
  const int64_t cost = int64_t{kSharedKeysCost} * (tokens / kTileTokens) + kSharedTileCost;
  return s.share_all != 0 || cost * s.multiprocessors <= decode_tiles;
}

// What the rows of a plan share, an entry a row.
struct SharedRows {
  // What a row has in common with the row before, in tokens; then the row's shared tiles.
  int32_t* tiles;
  int32_t* run;   // rows of the run that begins here; 0: none does
  int32_t* runs;  // how many there are

  // Finds the runs of the group of rows [begin, end), returns their number. A row that would more
  // than halve what a run shares begins another.
  OCTAVO_HOST_DEVICE int32_t FindRuns(int32_t begin, int32_t end) const {
    int32_t first = begin, tokens = 0, found = 0;  // of the run so far; 0 tokens: it has one row
    for (int32_t r = begin + 1; r <= end; ++r) {
      const int32_t common = r < end ? tiles[r] / kTileTokens * kTileTokens : 0;
      if (common >= kLeastSharedTokens && 2 * common >= tokens) {
        tokens = tokens == 0 ? common : Min(tokens, common);
        continue;
      }
      const bool enough = r - first >= kLeastSharingRows;
      Set(first, r, enough ? tokens / kTileTokens : 0);
      found += enough ? 1 : 0;
      first = r;
      tokens = 0;
    }
    return found;
  }

  // Lets go of the run that begins with row `r`, if one does, unless it is worth its time.
  OCTAVO_HOST_DEVICE void Judge(const PlanShape& s, int32_t r, int64_t decode_tiles) const {
    if (run[r] > 0 && !WorthSharing(s, PartTokensOf(s, r), decode_tiles)) Set(r, r + run[r], 0);
  }

  // Of a row that shares.
  OCTAVO_HOST_DEVICE int32_t PartTokensOf(const PlanShape& s, int32_t r) const {
    return PartTokens(s, tiles[r] * kTileTokens, MostParts(s, *runs));
  }
  OCTAVO_HOST_DEVICE int32_t PartsOf(const PlanShape& s, int32_t r) const {
    return CeilDiv(tiles[r] * kTileTokens, PartTokensOf(s, r));
  }

 private:
  OCTAVO_HOST_DEVICE void Set(int32_t begin, int32_t end, int32_t shared) const {
    for (int32_t r = begin; r < end; ++r) {
      tiles[r] = shared;
      run[r] = shared > 0 && r == begin ? end - begin : 0;
    }
  }
};

}  // namespace octavo::cuda
