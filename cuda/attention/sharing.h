// Which decode rows read a prefix that they have in common together, as arithmetic that host and
// device share.
//
// Rows of one query that stand next to each other in a step and whose lines of the block table
// begin alike form a run. The keys that all of a run share are computed once for all its queries:
// as a tile of the prefill kernel, which takes the run's rows for a row's tokens, hides nothing
// and leaves softmax states. The decode kernel works on what is left of each row and merges.
//
// Groups of as many rows as a tile has tokens, aligned in the order of rows, are looked at one by
// one, so that a thread each finds the runs. A tile is worth its time where it ends before
// everybody's share of the step would have ended.
#pragma once

#include "attention/schedule.h"

namespace octavo::cuda {

// What a run has to save for a state in memory, and a tile whose other rows are empty, to be worth
// it [to be measured].
inline constexpr int kLeastSharedTokens = 256;
inline constexpr int kLeastSharingRows = 4;
inline constexpr int kMostComparedBlocks = 2048;  // of two rows: 32k tokens of blocks of 16
// Decode tiles that a multiprocessor reads while it computes 16 shared keys of a tile: 0.7 by the
// times of both kernels apart (ADR 38), and the rest for waiting on each other [to be measured].
inline constexpr int kSharedKeysCost = 2;
static_assert(kLeastSharedTokens % kTileTokens == 0);

// Whether a row may share: it is decoded, and its one query stands behind the shared keys.
OCTAVO_HOST_DEVICE bool MayShare(int32_t queries, int32_t length) {
  return queries == 1 && length > 0;
}

// The tokens of a row of this length that may be shared: whole tiles, and at least one is left.
OCTAVO_HOST_DEVICE int32_t MostShared(int32_t length) {
  return (length - 1) / kTileTokens * kTileTokens;
}

// Whether a tile of this many shared keys ends before the step's decode tiles would, if nothing
// were shared. With 0 multiprocessors every tile does.
OCTAVO_HOST_DEVICE bool WorthSharing(const PlanShape& s, int32_t tokens, int64_t decode_tiles) {
  const int64_t cost = int64_t{kSharedKeysCost} * (tokens / kTileTokens);
  return cost * s.multiprocessors <= decode_tiles;
}

// What the rows of a plan share, an entry a row.
struct SharedRows {
  // What a row has in common with the row before, in tokens; in the end the row's shared tiles.
  int32_t* tiles;
  int32_t* run;  // rows of the run that begins here; 0: none does

  // The run of rows [begin, end), which share `tokens`, or none if it is not worth it.
  OCTAVO_HOST_DEVICE void Take(const PlanShape& s, int32_t begin, int32_t end, int32_t tokens,
                               int64_t decode_tiles) const {
    const bool taken = end - begin >= kLeastSharingRows && WorthSharing(s, tokens, decode_tiles);
    for (int32_t r = begin; r < end; ++r) {
      tiles[r] = taken ? tokens / kTileTokens : 0;
      run[r] = taken && r == begin ? end - begin : 0;
    }
  }

  // Finds the runs of the group of rows [begin, end). A row that would more than halve what a run
  // shares begins another.
  OCTAVO_HOST_DEVICE void TakeGroup(const PlanShape& s, int32_t begin, int32_t end,
                                    int64_t decode_tiles) const {
    int32_t first = begin, tokens = 0;  // of the run so far; 0: it has one row
    for (int32_t r = begin + 1; r <= end; ++r) {
      const int32_t common = r < end ? tiles[r] / kTileTokens * kTileTokens : 0;
      const bool joins = common >= kLeastSharedTokens && 2 * common >= tokens;
      if (joins) {
        tokens = tokens == 0 ? common : Min(tokens, common);
        continue;
      }
      Take(s, first, r, tokens, decode_tiles);
      first = r;
      tokens = 0;
    }
  }
};

}  // namespace octavo::cuda
