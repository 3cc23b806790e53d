// How a step's rows become work, as arithmetic that host and device share.
//
// Decode. A tile is 16 tokens of a row's keys. An item is a row's keys for one KV head and one
// group of up to `columns` packed queries (query token x head of the KV head's group); a unit is an
// item, or with fixed splits one split of an item. Units stand on one line in row order, each as
// long as its tiles plus an overhead, and the line is cut into one share per CTA. Where a cut falls
// inside a unit, its pieces become splits whose softmax states are merged afterwards. A segment is
// what one CTA does of one unit.
//
// Where each CTA would have several units of much the same length, none is cut: the CTAs have one
// each to begin with, and the others, long ones first, are dealt to whoever is done. Memory serves
// some multiprocessors a fifth faster than others, and the heads of a row, which lie side by side
// there, are read at about the same time.
//
// Slots of partial results: with `a` cuts inside earlier units, the splits of a unit own the slots
// from 2a on, because a unit with k cuts inside has k + 1 <= 2k splits. Units of fixed splits own
// the slot of their own number.
//
// Prefill. A tile is up to `prefill_tokens` query tokens of a row; each is done whole, for every KV
// head. What rows of one query share is such a tile as well (sharing.h).
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace octavo::cuda {

inline constexpr int kTileTokens = 16;   // keys of a decode tile: one k step of P V
inline constexpr int kUnitOverhead = 2;  // tiles that starting and merging a unit costs [measured]
inline constexpr int kMaxCtas = 480;     // decode CTAs: two on each of 240 multiprocessors
inline constexpr int kMaxPlanRows = 4096;
inline constexpr int kFixedSplitTiles = 64;  // the shortest fixed split: 1024 tokens
inline constexpr int kMaxFixedSplits = 16;   // longer rows get longer splits: memory stays bounded
// Shares of at least this many rounds (one tile for each warp) may be cut at any tile; shorter ones
// only between rounds, or a CTA would run a round for a tile or two.
inline constexpr int kFineCutRounds = 32;
// The portable kernel takes prefill tiles nearly by falling cost. The wgmma kernel is fast enough
// to wait for memory, and a row's tiles cost nearly the same where much context stands in front of
// them: coarse classes leave them together, and together they read K and V from memory once.
inline constexpr int kPrefillCostClasses = 256, kWgmmaCostClasses = 16;
inline constexpr int kSpareCtas = 16;  // one CTA in so many may be left out for an even cut
// Units are dealt where two CTAs have so many of them, of so many tiles on average, for each begins
// afresh, and none is longer than so many shares. Fewer stay whole where they are so short that
// what a cut costs is more than what it evens out [measured].
inline constexpr int kDealtUnits = 5, kLeastDealtTiles = 32, kDealtShares = 2;
inline constexpr int kMostWholeTiles = 64, kMergeTiles = 8;
inline constexpr int kMostSortedRows = 512;  // of more, a CTA has so many units that none is long

// a / b for a >= 0, b > 0, by the short way where a fits 32 bits: a GPU divides 64 bits in
// software.
OCTAVO_HOST_DEVICE int64_t Quotient(int64_t a, int32_t b) {
  if (a >> 32 == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// What is the same for every row of a plan.
struct PlanShape {
  int32_t rows = 0;
  int32_t kv_heads = 0;
  int32_t group = 0;   // query heads of a KV head
  int32_t window = 0;  // as FirstSeen takes it
  int32_t decode_queries = 1;
  int32_t columns = 0;  // packed queries of an item
  int32_t ctas = 0;
  int32_t warps = 0;  // of a decode CTA
  int32_t fixed_split = 0;
  int32_t deals = 0;            // whether units may be dealt
  int32_t prefill_tokens = 0;   // of a prefill tile; 0: there is no prefill kernel
  int32_t prefill_classes = 1;  // of cost, by which prefill tiles are sorted
  int32_t sharing = 0;          // whether decode rows share prefixes (sharing.h)
  int32_t share_all = 0;        // whatever it costs
  int32_t shared_keys = 0;      // that the prefill kernel takes at a time
  int32_t multiprocessors = 0;  // that the tiles of shared prefixes are to fill
};

// One segment: 48 bytes, read as three 16-byte words. The first is what loading K and V needs.
struct alignas(16) Segment {
  int32_t row_slot;    // the row's line of the block table
  int32_t head;        // KV head
  int32_t first_tile;  // of the row
  int32_t tiles;
  int32_t first_token;  // the row's first query in q and out
  int32_t queries;
  int32_t length;
  int32_t column;      // the item's first packed query
  int32_t slot;        // of the partial result; -1: the segment is the whole item
  int32_t group_slot;  // of the item's first split
  int32_t splits;      // of the item
  int32_t shared;      // of a row that begins behind shared keys its number and parts; else -1

  OCTAVO_HOST_DEVICE static int32_t Shared(int32_t row, int32_t parts) { return parts << 16 | row; }
  OCTAVO_HOST_DEVICE int32_t shared_row() const { return shared & 0xffff; }
  OCTAVO_HOST_DEVICE int32_t shared_parts() const { return shared >> 16; }
};
static_assert(sizeof(Segment) == 48 && kMaxPlanRows <= 1 << 16);

// A CTA's share: `first` is a copy of its first segment, so that the common case of one segment
// costs one load.
struct alignas(16) CtaWork {
  int32_t first_segment;
  int32_t segments;
  int32_t dealt;  // to all CTAs: the segments behind one for each of them
  int32_t unused;
  Segment first;
};
static_assert(sizeof(CtaWork) == 64);

// One prefill tile, 32 bytes: tokens of a row, or those of rows that share a prefix, whose keys it
// is about.
struct alignas(16) PrefillTile {
  int32_t row_slot;
  int32_t first_token;  // in q and out
  int32_t tokens;
  int32_t position;  // of the first token; of shared keys -1 - s, with s its state
  int32_t length;    // of the row; of shared keys where they end
  // Left open by the plan, because the kernel takes every tile once for each KV head and knows how
  // many keys it takes at a time.
  int32_t kv_head;
  int32_t first_keys;  // the first group of keys that a query sees; of shared keys the plan's
  int32_t last_keys;

  OCTAVO_HOST_DEVICE bool shared() const { return position < 0; }
  OCTAVO_HOST_DEVICE int32_t first_state() const { return -1 - position; }
  // The last key that a token of the tile sees: its own, or all that are shared.
  OCTAVO_HOST_DEVICE int32_t PositionOf(int32_t token) const {
    return Min((shared() ? length : position) + token, length - 1);
  }
};
static_assert(sizeof(PrefillTile) == 32);

struct RowWork {
  int32_t first_tile = 0;
  int32_t tiles = 0;        // of an item
  int32_t split_tiles = 0;  // of a unit; the last one of an item may be shorter
  int32_t splits = 1;       // units of an item
  int32_t items = 0;
  int32_t prefill_tiles = 0;

  OCTAVO_HOST_DEVICE int32_t units() const { return items * splits; }
  OCTAVO_HOST_DEVICE int32_t item_cost() const { return tiles + splits * kUnitOverhead; }
  OCTAVO_HOST_DEVICE int64_t cost() const { return int64_t{items} * item_cost(); }
  // Tiles of the unit that is number `split` of its item.
  OCTAVO_HOST_DEVICE int32_t unit_tiles(int32_t split) const {
    return Min(split_tiles, tiles - split * split_tiles);
  }
};

// The first key that a query at `position` sees. A window of 0 is none, w > 0 the w keys up to the
// query's own, and -w the keys from the start of the chunk of w that it stands in. It never falls
// as the position rises, so the first of several queries decides which keys are read.
OCTAVO_HOST_DEVICE int32_t FirstSeen(int32_t position, int32_t window) {
  if (window == 0) return 0;
  if (window < 0) return position - position % -window;
  return Max(0, position - window + 1);
}

// The same where `earlier` is what the query at a position a little before this one sees first: a
// kernel short of registers does not divide.
OCTAVO_HOST_DEVICE int32_t FirstSeenAfter(int32_t earlier, int32_t position, int32_t window) {
  if (window >= 0) return window == 0 ? 0 : position - window + 1;
  while (position - earlier >= -window) earlier -= window;
  return earlier;
}

// The first key that any query of a row sees.
OCTAVO_HOST_DEVICE int32_t FirstKey(int32_t queries, int32_t length, int32_t window) {
  return FirstSeen(length - queries, window);
}

// The work of a row whose first `shared_tiles` tiles are somebody else's.
OCTAVO_HOST_DEVICE RowWork PlanRow(const PlanShape& s, int32_t queries, int32_t length,
                                   int32_t shared_tiles = 0) {
  RowWork r;
  if (queries <= 0 || length < queries) return r;
  if (queries > s.decode_queries) {
    if (s.prefill_tokens > 0) r.prefill_tiles = CeilDiv(queries, s.prefill_tokens);
    return r;
  }
  r.first_tile = Max(shared_tiles, FirstKey(queries, length, s.window) / kTileTokens);
  r.tiles = CeilDiv(length, kTileTokens) - r.first_tile;
  r.items = s.kv_heads * CeilDiv(queries * s.group, s.columns);
  r.split_tiles = r.tiles;
  if (s.fixed_split != 0) {
    r.split_tiles = Max(kFixedSplitTiles, CeilDiv(r.tiles, kMaxFixedSplits));
    r.splits = CeilDiv(r.tiles, r.split_tiles);
  }
  return r;
}

// CTAs that get work: enough to give each a full round, and where that costs few of them a number
// that gives every CTA whole units, or every unit whole CTAs. Rows of one length then have fewer
// splits to merge: on an H200 that saves 2 to 6 % of batches of 1k.
OCTAVO_HOST_DEVICE int32_t UsedCtas(const PlanShape& s, int64_t cost, int32_t units) {
  const int64_t tiles = cost - int64_t{units} * kUnitOverhead;
  const auto most = static_cast<int32_t>(
      Max<int64_t>(1, Min<int64_t>(s.ctas, Quotient(tiles + s.warps - 1, s.warps))));
  if (units == 0) return most;
  const int32_t even =
      units >= most ? CeilDiv(units, CeilDiv(units, most)) : units * (most / units);
  return even >= most - most / kSpareCtas ? even : most;
}

// How the line is cut.
struct LineCuts {
  int32_t used;   // CTAs that get a share
  bool whole;     // cuts stand between units
  int32_t dealt;  // units behind those that the CTAs begin with, one each
};

// `longest`: tiles of a unit.
OCTAVO_HOST_DEVICE LineCuts ChooseCuts(const PlanShape& s, int64_t cost, int32_t units,
                                       int32_t longest) {
  const bool even = longest <= kDealtShares * Quotient(cost, s.ctas) + kMergeTiles;
  const bool deals = s.deals != 0 && even && 2 * units >= kDealtUnits * s.ctas &&
                     cost >= int64_t{units} * (kLeastDealtTiles + kUnitOverhead);
  if (deals) return {s.ctas, true, units - s.ctas};
  const bool whole = even && longest <= kMostWholeTiles && units >= s.ctas * 5 / 8;
  return {UsedCtas(s, cost, units), s.fixed_split != 0 || whole, 0};
}

// The tiles that cuts are rounded to.
OCTAVO_HOST_DEVICE int32_t CutGrain(const PlanShape& s, int64_t share) {
  return share >= int64_t{kFineCutRounds} * s.warps ? 1 : s.warps;
}

struct Cut {
  int32_t unit;  // within the row; may be the row's unit count, which is the next row's first
  int32_t tile;  // within the unit
};

// The cut nearest to `position` on a row's part of the line. It never leaves a unit a piece of less
// than a round at either end. Cuts never fall as the position rises.
OCTAVO_HOST_DEVICE Cut CutRow(const PlanShape& s, const RowWork& r, int64_t position, int32_t grain,
                              bool whole) {
  const int64_t item = Quotient(position, r.item_cost());
  const auto rest = static_cast<int32_t>(position - item * r.item_cost());
  if (whole) {
    const int32_t unit_cost = r.split_tiles + kUnitOverhead;
    const int32_t split = Min(rest / unit_cost, r.splits - 1);
    const bool next = 2 * (rest - split * unit_cost) > r.unit_tiles(split) + kUnitOverhead;
    return {static_cast<int32_t>(item) * r.splits + split + (next ? 1 : 0), 0};
  }
  const int32_t tile = (Max(rest - kUnitOverhead, 0) + grain / 2) / grain * grain;
  const auto unit = static_cast<int32_t>(item);
  if (tile < s.warps) return {unit, 0};
  if (r.tiles - tile < s.warps) return {unit + 1, 0};
  return {unit, tile};
}

// A mask says which keys a query sees: from the first one up to its own.
OCTAVO_HOST_DEVICE bool Sees(int32_t position, int32_t key, int32_t window) {
  return key <= position && key >= FirstSeen(position, window);
}

// Whether some query at a position in [first, last] does not see some key in [key, key + count).
OCTAVO_HOST_DEVICE bool NeedsMask(int32_t first, int32_t last, int32_t key, int32_t count,
                                  int32_t window) {
  return key + count - 1 > first || key < FirstSeen(last, window);
}

// The smallest i in [0, n) whose successor's value is larger than `wanted`, where values[0] <=
// wanted < values[n] and values never fall.
template <typename T>
OCTAVO_HOST_DEVICE int32_t FindOwner(const T* values, int32_t n, T wanted) {
  int32_t low = 0, high = n - 1;
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (values[middle + 1] > wanted) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// The line of cuts: arrays of ctas + 1 entries, entry c where CTA c begins, the last the line's
// end.
struct CutLine {
  int32_t* unit;      // of the whole plan
  int32_t* tile;      // within the unit
  int32_t* interior;  // different cuts inside a unit, up to and including this one
  int32_t ctas;

  // The number of the first segment of CTA c, and so, at c = ctas, of all.
  OCTAVO_HOST_DEVICE int32_t segment(int32_t c) const { return unit[c] + interior[c]; }
  // Whether cut c opens another segment of the unit that it lies in.
  OCTAVO_HOST_DEVICE bool opens(int32_t c) const {
    return tile[c] > 0 && (unit[c] != unit[c - 1] || tile[c] != tile[c - 1]);
  }
  // Different cuts inside the units before `u`.
  OCTAVO_HOST_DEVICE int32_t interior_before(int32_t u) const {
    int32_t low = 0, high = ctas;  // the last cut in a unit before u; cut 0 counts none
    while (low < high) {
      const int32_t middle = (low + high + 1) / 2;
      if (unit[middle] < u) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return interior[low];
  }
};

// Which part of which unit a segment is, and how it shares its item.
struct SegmentPart {
  int32_t cta;
  int32_t unit;
  int32_t begin;  // tile within the unit
  int32_t end;    // -1: the unit's end
  int32_t slot;   // -1: no cut inside the unit
  int32_t group_slot;
  int32_t splits;
};

OCTAVO_HOST_DEVICE SegmentPart FindSegment(const CutLine& line, int32_t segment) {
  int32_t low = 0, high = line.ctas - 1;  // the last CTA that begins at or before the segment
  while (low < high) {
    const int32_t middle = (low + high + 1) / 2;
    if (line.segment(middle) <= segment) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  SegmentPart part;
  part.cta = low;
  part.unit = line.unit[low] + segment - line.segment(low);
  part.begin = segment == line.segment(low) ? line.tile[low] : 0;
  part.end = part.unit == line.unit[low + 1] ? line.tile[low + 1] : -1;
  part.splits = 1;
  part.slot = -1;
  part.group_slot = -1;
  if (part.begin == 0 && part.end < 0) return part;
  const int32_t before = line.interior_before(part.unit);
  part.splits = line.interior_before(part.unit + 1) - before + 1;
  part.group_slot = 2 * before;
  part.slot = part.group_slot + line.interior[low] - before;
  return part;
}

}  // namespace octavo::cuda
