// Writes the attention plan of a step: who computes which tiles (schedule.h says by what rule).
//
// Inputs: query_start [R + 1], seq_len [R], row_slot [R] int32. Output: PlanParts.
// Grid: one CTA of 1024 threads; a thread owns neighbouring rows, then cuts, then segments, then
// prefill tiles. Bound by latency: three block scans and two rounds of global memory, about 2 us,
// once a step for all layers.
#include "attention/plan.h"
#include "common/ptx.cuh"

namespace octavo::cuda {
namespace {

constexpr int kPlanThreads = 1024;
constexpr int kPlanWarps = kPlanThreads / kWarpSize;
constexpr int kCostBuckets = 256;
constexpr int64_t kPlanAlign = 256;  // bytes: parts begin on whole cache lines
static_assert(kPlanThreads > kMaxCtas, "a thread owns a cut");
static_assert(kPlanWarps <= kWarpSize, "one warp scans the warps' sums");

// Shared memory of the kernel: prefix sums over rows, then the cuts.
struct PlanScratch {
  int64_t* cost;   // [rows + 1]
  int32_t* units;  // [rows + 1]
  int32_t* tiles;  // [rows + 1], prefill
  CutLine line;
};

int SharedBytes(const PlanShape& s) {
  const int row_bytes = static_cast<int>(sizeof(int64_t) + 2 * sizeof(int32_t));
  return row_bytes * (s.rows + 1) + 3 * static_cast<int>(sizeof(int32_t)) * (s.ctas + 1);
}

__device__ PlanScratch CarveScratch(const PlanShape& s, void* shared) {
  PlanScratch m;
  m.cost = static_cast<int64_t*>(shared);
  m.units = reinterpret_cast<int32_t*>(m.cost + s.rows + 1);
  m.tiles = m.units + s.rows + 1;
  m.line.unit = m.tiles + s.rows + 1;
  m.line.tile = m.line.unit + s.ctas + 1;
  m.line.interior = m.line.tile + s.ctas + 1;
  m.line.ctas = s.ctas;
  return m;
}

// The sum of `value` over the threads before this one.
template <typename T>
__device__ T SumBefore(T value) {
  __shared__ T warp_sums[kWarpSize];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  T inclusive = value;
  for (int step = 1; step < kWarpSize; step *= 2) {
    const T other = __shfl_up_sync(kFullWarp, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  __syncthreads();  // the last use of warp_sums is over
  if (lane == kWarpSize - 1) warp_sums[warp] = inclusive;
  __syncthreads();
  T before = 0;
  for (int w = 0; w < warp; ++w) before += warp_sums[w];
  return before + inclusive - value;
}

__device__ RowWork WorkOfRow(const PlanParams& p, int row) {
  return PlanRow(p.shape, p.query_start[row + 1] - p.query_start[row], p.seq_len[row]);
}

// Prefix sums of cost, units and prefill tiles; the longest prefill row.
__device__ void ScanRows(const PlanParams& p, const PlanScratch& m, int* longest) {
  const int rows = p.shape.rows, each = CeilDiv(rows, kPlanThreads);
  const int begin = Min<int>(threadIdx.x * each, rows), end = Min(begin + each, rows);
  int64_t cost = 0;
  int32_t units = 0, tiles = 0;
  for (int r = begin; r < end; ++r) {
    const RowWork work = WorkOfRow(p, r);
    cost += work.cost();
    units += work.units();
    tiles += work.prefill_tiles;
    if (work.prefill_tiles > 0) atomicMax(longest, p.seq_len[r]);
  }
  cost = SumBefore(cost);
  units = SumBefore(units);
  tiles = SumBefore(tiles);
  for (int r = begin; r <= end; ++r) {
    if (r == end && r != rows) break;
    m.cost[r] = cost;
    m.units[r] = units;
    m.tiles[r] = tiles;
    if (r == end) break;
    const RowWork work = WorkOfRow(p, r);
    cost += work.cost();
    units += work.units();
    tiles += work.prefill_tiles;
  }
}

// Places the cuts. The caller's threads number more than the cuts.
__device__ void CutTheLine(const PlanParams& p, const PlanScratch& m) {
  const PlanShape& s = p.shape;
  const int c = threadIdx.x;
  const int64_t cost = m.cost[s.rows];
  const int32_t units = m.units[s.rows];
  const int32_t used = UsedCtas(s, cost, units);
  if (c <= s.ctas) {
    Cut cut{units, 0};
    if (c < used && units > 0) {
      const int64_t position = cost * c / used;
      const int row = FindOwner(m.cost, s.rows, position);
      cut = CutRow(s, WorkOfRow(p, row), position - m.cost[row], CutGrain(s, cost / used));
      cut.unit += m.units[row];
    }
    m.line.unit[c] = cut.unit;
    m.line.tile[c] = cut.tile;
  }
  __syncthreads();
  const int opens = c > 0 && c <= s.ctas && m.line.opens(c) ? 1 : 0;
  const int before = SumBefore(opens);
  if (c <= s.ctas) m.line.interior[c] = before + opens;
  __syncthreads();
}

__device__ Segment MakeSegment(const PlanParams& p, const PlanScratch& m, const SegmentPart& part) {
  const PlanShape& s = p.shape;
  const int row = FindOwner(m.units, s.rows, part.unit);
  const RowWork work = WorkOfRow(p, row);
  const int unit = part.unit - m.units[row];
  const int item = unit / work.splits, split = unit - item * work.splits;
  const int groups = work.items / s.kv_heads;  // of columns
  const int end = part.end < 0 ? work.unit_tiles(split) : part.end;
  Segment g;
  g.row_slot = p.row_slot[row];
  g.head = item / groups;
  g.first_tile = work.first_tile + split * work.split_tiles + part.begin;
  g.tiles = end - part.begin;
  g.first_token = p.query_start[row];
  g.queries = p.query_start[row + 1] - g.first_token;
  g.length = p.seq_len[row];
  g.column = item % groups * s.columns;
  const bool fixed = work.splits > 1;
  g.slot = fixed ? part.unit : part.slot;
  g.group_slot = fixed ? part.unit - split : part.group_slot;
  g.splits = fixed ? work.splits : part.splits;
  g.unused = 0;
  return g;
}

__device__ void WriteSegments(const PlanParams& p, const PlanScratch& m) {
  const PlanShape& s = p.shape;
  for (int c = threadIdx.x; c < s.ctas; c += kPlanThreads) {
    const int first = m.line.segment(c), count = m.line.segment(c + 1) - first;
    p.parts.ctas[c].first_segment = first;
    p.parts.ctas[c].segments = count;
  }
  const int segments = m.line.segment(s.ctas);
  for (int i = threadIdx.x; i < segments; i += kPlanThreads) {
    const SegmentPart part = FindSegment(m.line, i);
    const Segment g = MakeSegment(p, m, part);
    p.parts.segments[i] = g;
    if (i == m.line.segment(part.cta)) p.parts.ctas[part.cta].first = g;
    if (g.slot >= 0) p.parts.arrived[g.slot] = 0;
  }
}

// Tiles sorted by falling cost into buckets; the order within a bucket is free, because no result
// depends on it.
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
    const int row = FindOwner(m.tiles, s.rows, i);
    const int skip = (i - m.tiles[row]) * s.prefill_tokens;
    const int start = p.query_start[row], queries = p.query_start[row + 1] - start;
    PrefillTile tile{};
    tile.row_slot = p.row_slot[row];
    tile.first_token = start + skip;
    tile.tokens = Min(queries - skip, s.prefill_tokens);
    tile.length = p.seq_len[row];
    tile.position = tile.length - queries + skip;
    int64_t keys = tile.position + tile.tokens;
    if (s.window > 0) keys = Min<int64_t>(keys, s.window + tile.tokens);
    *bucket = kCostBuckets - 1 - static_cast<int>(keys * (kCostBuckets - 1) / longest);
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
  const int before = SumBefore(t < kCostBuckets ? bucket_end[t] : 0);
  if (t < kCostBuckets) bucket_end[t] = before;
  __syncthreads();
  for (int i = t; i < tiles; i += kPlanThreads) {
    const PrefillTile tile = make(i, &bucket);
    p.parts.tiles[atomicAdd(&bucket_end[bucket], 1)] = tile;
  }
}

__global__ __launch_bounds__(kPlanThreads, 1) void PlanKernel(const __grid_constant__ PlanParams p) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ int longest;
  GridDependencyWait();
  GridDependencyLaunch();
  const PlanScratch m = CarveScratch(p.shape, shared);
  if (threadIdx.x == 0) longest = 1;
  __syncthreads();
  ScanRows(p, m, &longest);
  __syncthreads();
  CutTheLine(p, m);
  WriteSegments(p, m);
  WritePrefillTiles(p, m, longest);
}

}  // namespace

PlanCapacity CapacityOf(const PlanShape& s, int64_t tokens) {
  const int64_t groups = CeilDiv(int64_t{s.decode_queries} * s.group, int64_t{s.columns});
  const int64_t items = int64_t{s.rows} * s.kv_heads * groups;
  const int64_t units = s.fixed_split != 0 ? items * kMaxFixedSplits : items;
  PlanCapacity c;
  c.segments = units + s.ctas;
  c.slots = s.fixed_split != 0 ? units : 2 * int64_t{s.ctas};
  if (s.prefill_tokens > 0) c.tiles = tokens / s.prefill_tokens + s.rows;
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
  take(&parts.arrived, c.slots);
  take(&parts.sums, c.slots * s.columns * head_dim);
  take(&parts.stats, c.slots * s.columns);
  return parts;
}

Status LaunchPlan(const PlanParams& params, bool dependent, cudaStream_t stream) {
  LaunchShape shape;
  shape.threads = kPlanThreads;
  shape.shared_bytes = SharedBytes(params.shape);
  shape.dependent = dependent;
  shape.stream = stream;
  return Launch(PlanKernel, shape, params);
}

}  // namespace octavo::cuda
