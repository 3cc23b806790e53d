// Writes the attention plan of a step: who computes which tiles (schedule.h says by what rule).
//
// Inputs: query_start [R + 1], seq_len [R], row_slot [R] int32, and what neighbouring rows have in
// common where prefixes are shared. Output: PlanParts.
// Grid: a few CTAs of 512 threads. Each scans all rows and places all cuts, which costs less than
// talking to the others; they share the writing of segments. A thread owns neighbouring rows, then
// a cut, then segments, then (in CTA 0) prefill tiles. Bound by latency: one round of global reads,
// two block scans, some binary searches; once a step for all layers.
#include "attention/plan.h"
#include "attention/sharing.h"
#include "common/ptx.cuh"

namespace octavo::cuda {
namespace {

constexpr int kPlanThreads = 512;
constexpr int kMaxPlanCtas = 16;
constexpr int kPlanWarps = kPlanThreads / kWarpSize;
constexpr int kCostBuckets = Max(kPrefillCostClasses, kWgmmaCostClasses);
constexpr int64_t kPlanAlign = 256;  // bytes: parts begin on whole cache lines
static_assert(kPlanThreads > kMaxCtas, "a thread owns a cut");
static_assert(kPlanWarps <= kWarpSize, "one warp scans the warps' sums");

// Shared memory of the kernel: the rows, their order, prefix sums in it, the cuts, then what rows
// share.
struct PlanScratch {
  int64_t* cost;    // [rows + 1]
  int32_t* start;   // [rows + 1], query_start
  int32_t* units;   // [rows + 1]
  int32_t* tiles;   // [rows + 1], prefill
  int32_t* length;  // [rows + 1], the last unused
  int32_t* order;   // [rows + 1], the last unused: the rows by place
  CutLine line;
  SharedRows shared;  // null where nothing is
};

int SharedBytes(const PlanShape& s) {
  const int words = s.sharing != 0 ? 7 : 5;
  const int row_bytes = static_cast<int>(sizeof(int64_t)) + words * 4;
  return row_bytes * (s.rows + 1) + 12 * (s.ctas + 1) + 4;
}
static_assert((kMaxPlanRows + 1) * 36 + 12 * (kMaxCtas + 1) + 4 <= 160 * 1024, "fits sm_80");

__device__ PlanScratch CarveScratch(const PlanShape& s, void* shared) {
  PlanScratch m;
  m.cost = static_cast<int64_t*>(shared);
  m.start = reinterpret_cast<int32_t*>(m.cost + s.rows + 1);
  m.units = m.start + s.rows + 1;
  m.tiles = m.units + s.rows + 1;
  m.length = m.tiles + s.rows + 1;
  m.order = m.length + s.rows + 1;
  m.line.unit = m.order + s.rows + 1;
  m.line.tile = m.line.unit + s.ctas + 1;
  m.line.interior = m.line.tile + s.ctas + 1;
  m.line.ctas = s.ctas;
  m.shared = {nullptr, nullptr, nullptr};
  if (s.sharing != 0) {
    m.shared.tiles = m.line.interior + s.ctas + 1;
    m.shared.run = m.shared.tiles + s.rows + 1;
    m.shared.runs = m.shared.run + s.rows + 1;
  }
  return m;
}

// What is summed over rows.
struct RowSums {
  int64_t cost = 0;
  int32_t units = 0;
  int32_t tiles = 0;

  __device__ void Add(const RowWork& w) {
    cost += w.cost();
    units += w.units();
    tiles += w.prefill_tiles;
  }
};

__device__ __forceinline__ RowSums ShuffleUp(const RowSums& s, int step) {
  RowSums r;
  r.cost = __shfl_up_sync(kFullWarp, s.cost, step);
  r.units = __shfl_up_sync(kFullWarp, s.units, step);
  r.tiles = __shfl_up_sync(kFullWarp, s.tiles, step);
  return r;
}
__device__ __forceinline__ int32_t ShuffleUp(int32_t s, int step) {
  return __shfl_up_sync(kFullWarp, s, step);
}
__device__ __forceinline__ RowSums operator+(const RowSums& a, const RowSums& b) {
  return {a.cost + b.cost, a.units + b.units, a.tiles + b.tiles};
}

// The sum over this thread's warp up to and including it.
template <typename T>
__device__ __forceinline__ T ScanWarp(T value) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const T other = ShuffleUp(value, step);
    if (lane >= step) value = value + other;
  }
  return value;
}

// The sum of `value` over the threads before this one. Each call has a kUse of its own, because
// nothing guards a second use of its shared memory.
template <typename T, int kUse>
__device__ T SumBefore(T value) {
  __shared__ T warp_sums[kPlanWarps];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const T inclusive = ScanWarp(value);
  if (lane == kWarpSize - 1) warp_sums[warp] = inclusive;
  __syncthreads();
  if (warp == 0) {
    T sum = ScanWarp(lane < kPlanWarps ? warp_sums[lane] : T{});
    if (lane < kPlanWarps) warp_sums[lane] = sum;
  }
  __syncthreads();
  T before = ShuffleUp(inclusive, 1);
  if (lane == 0) before = T{};
  return warp == 0 ? before : before + warp_sums[warp - 1];
}

// The tiles in front of a row's own.
__device__ __forceinline__ int SharedTiles(const PlanScratch& m, int row) {
  return m.shared.tiles == nullptr ? 0 : m.shared.tiles[row];
}
// The rows of the run that begins with a row.
__device__ __forceinline__ int SharingRows(const PlanScratch& m, int row) {
  return m.shared.run == nullptr ? 0 : m.shared.run[row];
}

__device__ __forceinline__ RowWork WorkOfRow(const PlanParams& p, const PlanScratch& m, int row) {
  RowWork work =
      PlanRow(p.shape, m.start[row + 1] - m.start[row], m.length[row], SharedTiles(m, row));
  if (SharingRows(m, row) > 0) work.prefill_tiles = m.shared.PartsOf(p.shape, row);
  return work;
}

// Copies the rows to shared memory.
__device__ void LoadRows(const PlanParams& p, const PlanScratch& m) {
  for (int r = threadIdx.x; r <= p.shape.rows; r += kPlanThreads) {
    const bool row = r < p.shape.rows;
    m.start[r] = p.query_start[r];
    m.length[r] = row ? p.seq_len[r] : 0;
    m.order[r] = r;
    if (p.shape.sharing != 0) m.shared.tiles[r] = row ? p.parts.common[r] : 0;
  }
  if (p.shape.sharing != 0 && threadIdx.x == 0) *m.shared.runs = 0;
  __syncthreads();
}

// Decides which rows share what. `tiles`: of decode, a sum that begins with 0.
__device__ void ShareRows(const PlanParams& p, const PlanScratch& m, unsigned long long* tiles) {
  const PlanShape& s = p.shape;
  unsigned long long mine = 0;
  for (int r = threadIdx.x; r < s.rows; r += kPlanThreads) {
    const RowWork work = PlanRow(s, m.start[r + 1] - m.start[r], m.length[r]);
    mine += static_cast<unsigned long long>(work.items) * work.tiles;
  }
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) mine += __shfl_xor_sync(kFullWarp, mine, step);
  if (threadIdx.x % kWarpSize == 0) atomicAdd(tiles, mine);
  __syncthreads();
  for (int group = threadIdx.x; group * s.prefill_tokens < s.rows; group += kPlanThreads) {
    const int begin = group * s.prefill_tokens;
    const int runs = m.shared.FindRuns(begin, Min(begin + s.prefill_tokens, s.rows));
    if (runs > 0) atomicAdd(m.shared.runs, runs);
  }
  __syncthreads();
  for (int r = threadIdx.x; r < s.rows; r += kPlanThreads) {
    m.shared.Judge(s, r, static_cast<int64_t>(*tiles));
  }
  __syncthreads();
}

// Puts rows of long units first, where they are few enough to compare each with all and their units
// may be dealt.
__device__ void SortRows(const PlanParams& p, const PlanScratch& m) {
  const PlanShape& s = p.shape;
  const bool few = s.rows > kMostSortedRows || 2 * s.rows * s.kv_heads < kDealtUnits * s.ctas;
  if (s.deals == 0 || few) return;
  int32_t* const tiles = m.units;  // which are not counted yet
  const int row = threadIdx.x;
  const int mine = row < s.rows ? WorkOfRow(p, m, row).split_tiles : 0;
  if (row < s.rows) tiles[row] = mine;
  __syncthreads();
  int place = 0;
  for (int r = 0; r < s.rows; ++r)
    place += tiles[r] > mine || (tiles[r] == mine && r < row) ? 1 : 0;
  if (row < s.rows) m.order[place] = row;
  __syncthreads();
}
static_assert(kMostSortedRows <= kPlanThreads, "a thread has a row");

// The longest of what a plan has.
struct Longest {
  int prefill;  // keys of a row, at least 1
  int unit;     // tiles
};

// Prefix sums of cost, units and prefill tiles; what is longest.
__device__ void ScanRows(const PlanParams& p, const PlanScratch& m, Longest* longest) {
  const int rows = p.shape.rows, each = CeilDiv(rows, kPlanThreads);
  const int begin = Min<int>(threadIdx.x * each, rows), end = Min(begin + each, rows);
  RowSums sums;
  int unit = 0;
  for (int i = begin; i < end; ++i) {
    const int r = m.order[i];
    const RowWork work = WorkOfRow(p, m, r);
    sums.Add(work);
    unit = Max(unit, work.split_tiles);
    if (work.prefill_tiles > 0) {
      atomicMax(&longest->prefill,
                SharingRows(m, r) > 0 ? work.first_tile * kTileTokens : m.length[r]);
    }
  }
  if (unit > 0) atomicMax(&longest->unit, unit);
  sums = SumBefore<RowSums, 0>(sums);
  for (int i = begin; i <= end; ++i) {
    if (i == end && i != rows) break;
    m.cost[i] = sums.cost;
    m.units[i] = sums.units;
    m.tiles[i] = sums.tiles;
    if (i < end) sums.Add(WorkOfRow(p, m, m.order[i]));
  }
  __syncthreads();
}

// Places the cuts. The caller's threads number more than the cuts.
__device__ void CutTheLine(const PlanParams& p, const PlanScratch& m, const LineCuts& cuts) {
  const PlanShape& s = p.shape;
  const int c = threadIdx.x;
  const int64_t cost = m.cost[s.rows];
  const int32_t units = m.units[s.rows];
  if (c <= s.ctas) {
    Cut cut{units, 0};
    if (cuts.dealt > 0 && c < s.ctas) {
      cut.unit = c;
    } else if (c < cuts.used && units > 0) {
      const int64_t position = Quotient(cost * c, cuts.used);
      const int place = FindOwner(m.cost, s.rows, position);
      cut = CutRow(s, WorkOfRow(p, m, m.order[place]), position - m.cost[place],
                   CutGrain(s, Quotient(cost, cuts.used)), cuts.whole);
      cut.unit += m.units[place];
    }
    m.line.unit[c] = cut.unit;
    m.line.tile[c] = cut.tile;
  }
  __syncthreads();
  const int opens = c > 0 && c <= s.ctas && m.line.opens(c) ? 1 : 0;
  const int before = SumBefore<int32_t, 0>(opens);
  if (c <= s.ctas) m.line.interior[c] = before + opens;
  __syncthreads();
}

__device__ Segment MakeSegment(const PlanParams& p, const PlanScratch& m, const SegmentPart& part) {
  const PlanShape& s = p.shape;
  const int place = FindOwner(m.units, s.rows, part.unit), row = m.order[place];
  const RowWork work = WorkOfRow(p, m, row);
  const int unit = part.unit - m.units[place];
  const int item = unit / work.splits, split = unit - item * work.splits;
  const int groups = work.items / s.kv_heads;  // of columns
  const int end = part.end < 0 ? work.unit_tiles(split) : part.end;
  Segment g;
  g.row_slot = p.row_slot[row];
  g.head = item / groups;
  g.first_tile = work.first_tile + split * work.split_tiles + part.begin;
  g.tiles = end - part.begin;
  g.first_token = m.start[row];
  g.queries = m.start[row + 1] - g.first_token;
  g.length = m.length[row];
  g.column = item % groups * s.columns;
  const bool fixed = work.splits > 1;
  g.slot = fixed ? part.unit : part.slot;
  g.group_slot = fixed ? part.unit - split : part.group_slot;
  g.splits = fixed ? work.splits : part.splits;
  g.shared = SharedTiles(m, row) > 0 ? Segment::Shared(row, m.shared.PartsOf(s, row)) : -1;
  return g;
}

__device__ void WriteSegments(const PlanParams& p, const PlanScratch& m, int dealt) {
  const PlanShape& s = p.shape;
  const int threads = kPlanThreads * static_cast<int>(gridDim.x);
  const int mine = static_cast<int>(blockIdx.x) * kPlanThreads + threadIdx.x;
  for (int c = mine; c < s.ctas; c += threads) {
    const int first = m.line.segment(c), count = m.line.segment(c + 1) - first;
    p.parts.ctas[c].first_segment = first;
    p.parts.ctas[c].segments = dealt > 0 ? 1 : count;
    p.parts.ctas[c].dealt = dealt;
  }
  if (mine == 0) *p.parts.ticket = 0;
  const int segments = m.line.segment(s.ctas);
  for (int i = mine; i < segments; i += threads) {
    const SegmentPart part = FindSegment(m.line, i);
    const Segment g = MakeSegment(p, m, part);
    p.parts.segments[i] = g;
    if (i == m.line.segment(part.cta)) p.parts.ctas[part.cta].first = g;
    if (g.slot >= 0) p.parts.arrived[g.slot] = 0;
  }
}

// Prefill tile `i`; what the kernel is to fill in is left open.
__device__ PrefillTile MakePrefillTile(const PlanParams& p, const PlanScratch& m, int i) {
  const PlanShape& s = p.shape;
  const int place = FindOwner(m.tiles, s.rows, i), row = m.order[place];
  const int sharing = SharingRows(m, row);
  const int start = m.start[row], queries = m.start[row + 1] - start;
  PrefillTile tile{};
  tile.row_slot = p.row_slot[row];
  if (sharing > 0) {
    const int part = i - m.tiles[place], keys = m.shared.PartTokensOf(s, row);
    tile.first_token = start;
    tile.tokens = sharing;
    tile.position = -1 - (part * s.rows + row);
    tile.length = Min((part + 1) * keys, m.shared.tiles[row] * kTileTokens);
    tile.first_keys = part * keys / s.shared_keys;
    return tile;
  }
  const int skip = (i - m.tiles[place]) * s.prefill_tokens;
  tile.first_token = start + skip;
  tile.tokens = Min(queries - skip, s.prefill_tokens);
  tile.length = m.length[row];
  tile.position = tile.length - queries + skip;
  return tile;
}

// Tiles sorted by falling cost into buckets. No result depends on the order within a bucket, which
// is nearly that of the rows.
__device__ void WritePrefillTiles(const PlanParams& p, const PlanScratch& m, int longest) {
  __shared__ int bucket_end[kCostBuckets];
  const PlanShape& s = p.shape;
  const int tiles = m.tiles[s.rows];
  const int t = threadIdx.x;
  if (t == 0) {
    p.parts.prefill[kPrefillCount] = tiles;
    p.parts.prefill[kPrefillTicket] = 0;
    p.parts.prefill[kPrefillDone] = 0;
  }
  if (tiles == 0) return;
  const auto make = [&](int i, int* bucket) {
    const PrefillTile tile = MakePrefillTile(p, m, i);
    const int first =
        tile.shared() ? tile.first_keys * s.shared_keys : FirstSeen(tile.position, s.window);
    const int64_t keys = tile.PositionOf(tile.tokens - 1) + 1 - first;
    const int lowest = s.prefill_classes - 1;
    *bucket = lowest - static_cast<int>(keys * lowest / longest);
    return tile;
  };
  if (t < kCostBuckets) bucket_end[t] = 0;
  __syncthreads();
  int bucket;
  for (int i = t; i < tiles; i += kPlanThreads) {
    make(i, &bucket);
    atomicAdd(&bucket_end[bucket], 1);
  }
  __syncthreads();
  const int before = SumBefore<int32_t, 1>(t < kCostBuckets ? bucket_end[t] : 0);
  if (t < kCostBuckets) bucket_end[t] = before;
  __syncthreads();
  for (int i = t; i < tiles; i += kPlanThreads) {
    const PrefillTile tile = make(i, &bucket);
    p.parts.tiles[atomicAdd(&bucket_end[bucket], 1)] = tile;
  }
}

__global__ __launch_bounds__(kPlanThreads,
                             1) void PlanKernel(const __grid_constant__ PlanParams p) {
  __shared__ Longest longest;
  __shared__ unsigned long long decode_tiles;
  GridDependencyWait();
  GridDependencyLaunch();
  const PlanScratch m = CarveScratch(p.shape, DynamicShared());
  if (threadIdx.x == 0) {
    longest = {1, 0};
    decode_tiles = 0;
  }
  LoadRows(p, m);
  if (p.shape.sharing != 0) ShareRows(p, m, &decode_tiles);
  SortRows(p, m);
  ScanRows(p, m, &longest);
  const int rows = p.shape.rows;
  const LineCuts cuts = ChooseCuts(p.shape, m.cost[rows], m.units[rows], longest.unit);
  CutTheLine(p, m, cuts);
  WriteSegments(p, m, cuts.dealt);
  if (blockIdx.x == 0) WritePrefillTiles(p, m, longest.prefill);
}

}  // namespace

PlanCapacity CapacityOf(const PlanShape& s, int64_t tokens) {
  const int64_t groups = CeilDiv(int64_t{s.decode_queries} * s.group, int64_t{s.columns});
  const int64_t items = int64_t{s.rows} * s.kv_heads * groups;
  const int64_t units = s.fixed_split != 0 ? items * kMaxFixedSplits : items;
  PlanCapacity c;
  c.segments = units + s.ctas;
  c.slots = s.fixed_split != 0 ? units : 2 * int64_t{s.ctas};
  // A row of many queries has at most one tile that it does not fill. A run takes four rows that
  // have none, and where runs have several parts, all of them are no more than the multiprocessors.
  if (s.prefill_tokens > 0) c.tiles = tokens / s.prefill_tokens + s.rows;
  if (s.sharing != 0) {
    c.tiles += s.multiprocessors;
    c.shared_states = SharedStates(s);
  }
  return c;
}

PlanParts LayOutPlan(void* memory, const PlanShape& s, const PlanCapacity& c, int64_t head_dim) {
  PlanParts parts;
  char* const base = static_cast<char*>(memory);
  const auto take = [&](auto** part, int64_t count) {
    using T = std::remove_pointer_t<std::remove_pointer_t<decltype(part)>>;
    *part = reinterpret_cast<T*>(base + parts.bytes);
    parts.bytes += CeilDiv(count * static_cast<int64_t>(sizeof(T)), kPlanAlign) * kPlanAlign;
  };
  take(&parts.ctas, s.ctas);
  take(&parts.segments, c.segments);
  take(&parts.tiles, c.tiles);
  take(&parts.prefill, kPrefillWords);
  take(&parts.ticket, 1);
  take(&parts.arrived, c.slots);
  take(&parts.sums, c.slots * s.columns * head_dim);
  take(&parts.stats, c.slots * s.columns);
  const int64_t shared_heads = c.shared_states * s.kv_heads * s.group;
  take(&parts.common, s.sharing != 0 ? s.rows : 0);
  take(&parts.shared_sums, shared_heads * head_dim);
  take(&parts.shared_stats, shared_heads);
  return parts;
}

Status LaunchPlan(const PlanParams& params, int64_t segments, bool dependent, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid =
      static_cast<unsigned>(Min<int64_t>(CeilDiv(segments, int64_t{kPlanThreads}), kMaxPlanCtas));
  shape.threads = kPlanThreads;
  shape.shared_bytes = SharedBytes(params.shape);
  shape.dependent = dependent;
  shape.stream = stream;
  return Launch(PlanKernel, shape, params);
}

}  // namespace octavo::cuda
