// Cuts a step's attention into tasks. A unit is one tile of a row (neighbouring tokens whose packed
// queries fit kTileRows) for one KV head. Rows of a single tile (decode, short chunks) also cut
// their keys into splits, each with a softmax of its own, merged in order. Where the cuts lie
// depends on the row alone, never on the batch or the number of threads, so a row's result is the
// same bits in any company. With few units the splits become tasks of their own; otherwise the task
// of a unit walks its splits.
//
// An invariant call goes further: a query's bits depend on its own keys alone, in whatever chunk of
// its prompt it comes. Splits and key blocks then lie at multiples of their sizes, and rows of
// several tiles have splits like the others: a split that a query does not see leaves its sums as
// they are, bit for bit.
#include <algorithm>

#include "base/ops_check.h"
#include "cpu/attend_rows.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/scratch.h"
#include "octavo/ops.h"

namespace octavo::cpu {
namespace {

constexpr int64_t kSplitKeys = 512;  // the shortest split: a merge costs well under 1 % of it
// Rows beyond kMaxSplits of those get longer splits, so that partial results stay bounded.
constexpr int64_t kMaxSplits = 32;
// Of an invariant call, whatever the row's length: the longest that still cuts a row of 8k for more
// than one thread. Rows of more than kMaxSplits of them are not cut into tasks.
constexpr int64_t kInvariantSplitKeys = 2048;
static_assert(kInvariantSplitKeys % kKeyBlock == 0);
// Below this much work (rows x keys x head dim) a call stays on the calling thread: some 15 us.
constexpr int64_t kSmallWork = 1 << 18;
constexpr int64_t kUnitsPerThread = 4;
constexpr int64_t kPlanSlack =
    256;  // planning looks at a row in the place behind the last kept one

// One row with work to do.
struct RowPlan {
  int64_t row;
  int64_t first_token;
  int64_t tokens;
  int64_t length;
  int64_t tile_tokens;
  int64_t tiles;
  int64_t split_keys;
  int64_t parts;  // tasks of a unit where splits are tasks: its splits, or one that walks them
  int64_t task_begin;
};

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Call {
  const PagedAttentionArgs& args;
  const Kernels& kernels;
  int64_t kv_heads;
  int group;
  int head_dim;
  int value_dim;
  int64_t row_stride;  // of a state's sums of values
  RowPlan* rows = nullptr;
  int64_t num_rows = 0;
  int64_t tasks = 0;
  bool small = false;
  bool split_tasks = false;
  int64_t max_rows = 0;     // packed query rows of the largest tile
  float* states = nullptr;  // of the splits, one for each task

  explicit Call(const PagedAttentionArgs& a)
      : args(a),
        kernels(ActiveKernels()),
        kv_heads(a.cache.shape[2]),
        group(static_cast<int>(a.q.shape[1] / a.cache.shape[2])),
        head_dim(static_cast<int>(a.q.shape[2])),
        value_dim(static_cast<int>(a.out.shape[2])),
        row_stride(CeilDiv(value_dim, kRowAlign) * kRowAlign) {}

  int64_t StateFloats(int64_t m) const { return m * (row_stride + 2); }
  AttentionState StateAt(float* p, int64_t m) const { return {p, p + m, p + 2 * m}; }
};

// Fills `plan`; false for a row without work.
bool PlanRow(const Call& c, int64_t r, RowPlan* plan) {
  const int32_t* start = c.args.query_start.ptr<int32_t>();
  RowPlan& p = *plan;
  p.row = r;
  p.first_token = start[r];
  p.tokens = start[r + 1] - start[r];
  p.length = c.args.seq_len.ptr<int32_t>()[r];
  if (p.tokens == 0 || p.length == 0) return false;
  p.tile_tokens = std::max<int64_t>(1, kTileRows / c.group);
  p.tiles = CeilDiv(p.tokens, p.tile_tokens);
  const int64_t first = FirstVisibleKey(c.args, p.length - p.tokens), keys = p.length - first;
  if (c.args.invariant) {
    p.split_keys = kInvariantSplitKeys;
    const int64_t splits = CeilDiv(p.length, p.split_keys) - first / p.split_keys;
    p.parts = p.tiles > 1 || splits > kMaxSplits ? 1 : splits;
    return true;
  }
  const int64_t even = CeilDiv(CeilDiv(keys, kMaxSplits), kKeyBlock) * kKeyBlock;
  p.split_keys = p.tiles > 1 ? keys : std::max(kSplitKeys, even);
  p.parts = CeilDiv(keys, p.split_keys);
  return true;
}

// Rows of several tiles come first, because their tasks are the heavy ones.
void PlanRows(Call* c, int threads) {
  const int64_t rows = c->args.row_slot.shape[0];
  int64_t units = 0, work = 0;
  for (const bool many_tiles : {true, false}) {
    for (int64_t r = 0; r < rows; ++r) {
      RowPlan& p = c->rows[c->num_rows];
      if (!PlanRow(*c, r, &p) || (p.tiles > 1) != many_tiles) continue;
      units += p.tiles * c->kv_heads;
      work += p.tokens * c->group * p.length;
      c->max_rows = std::max(c->max_rows, std::min(p.tokens, p.tile_tokens) * c->group);
      ++c->num_rows;
    }
  }
  c->small = work * c->kv_heads * c->head_dim < kSmallWork;
  c->split_tasks = threads > 1 && !c->small && units < kUnitsPerThread * threads;
  for (int64_t i = 0; i < c->num_rows; ++i) {
    RowPlan& p = c->rows[i];
    p.task_begin = c->tasks;
    c->tasks += p.tiles * c->kv_heads * (c->split_tasks ? p.parts : 1);
  }
}

struct Unit {
  AttentionTile tile;
  int64_t key_begin;
  int64_t key_end;
  int64_t split_begin;  // of the first split, <= key_begin
  int64_t split_keys;

  int64_t splits() const { return CeilDiv(key_end - split_begin, split_keys); }
  int64_t SplitBegin(int64_t split) const {
    return split == 0 ? key_begin : split_begin + split * split_keys;
  }
  int64_t SplitEnd(int64_t split) const {
    return std::min(key_end, split_begin + (split + 1) * split_keys);
  }
};

Unit MakeUnit(const Call& c, const RowPlan& p, int64_t head, int64_t tile_index) {
  const PagedAttentionArgs& a = c.args;
  Unit u;
  AttentionTile& t = u.tile;
  const int64_t skip = tile_index * p.tile_tokens;
  t.dtype = a.q.dtype;
  t.cache_dtype = a.cache.dtype;
  t.head_dim = c.head_dim;
  t.value_dim = c.value_dim;
  t.q = RowOf(a.q, p.first_token + skip, head * c.group);
  t.out = RowOf(a.out, p.first_token + skip, head * c.group);
  t.q_token_stride = a.q.stride[0];
  t.q_head_stride = a.q.stride[1];
  t.out_token_stride = a.out.stride[0];
  t.out_head_stride = a.out.stride[1];
  t.tokens = static_cast<int>(std::min(p.tile_tokens, p.tokens - skip));
  t.group = c.group;
  t.first_position = p.length - p.tokens + skip;
  t.cache = a.cache.ptr<char>() + head * a.cache.stride[2] * DTypeSize(a.cache.dtype);
  t.block_stride = a.cache.stride[0];
  t.kv_stride = a.cache.stride[1];
  t.token_stride = a.cache.stride[3];
  t.block_size = a.cache.shape[3];
  t.table =
      a.block_table.ptr<int32_t>() + a.row_slot.ptr<int32_t>()[p.row] * a.block_table.stride[0];
  t.scale = a.scale * a.k_scale;
  t.value_scale = a.v_scale;
  t.soft_cap = a.soft_cap;
  t.window = a.window;
  t.chunked = a.chunked;
  t.invariant = a.invariant;
  if (a.sinks.has_value()) t.sinks = a.sinks->ptr<float>() + head * c.group;
  u.key_begin = FirstVisibleKey(a, t.first_position);
  u.key_end = t.first_position + t.tokens;
  u.split_keys = p.split_keys;
  u.split_begin = a.invariant ? u.key_begin / u.split_keys * u.split_keys : u.key_begin;
  return u;
}

// The row that owns a task; `within` becomes the task's index inside it.
const RowPlan& FindRow(const Call& c, int64_t task, int64_t* within) {
  const RowPlan* end = c.rows + c.num_rows;
  const RowPlan* next =
      std::upper_bound(static_cast<const RowPlan*>(c.rows), end, task,
                       [](int64_t t, const RowPlan& p) { return t < p.task_begin; });
  *within = task - next[-1].task_begin;
  return next[-1];
}

float* TaskScratch(int64_t floats) {
  return static_cast<float*>(
      ThreadScratch(ScratchUse::kTask, floats * static_cast<int64_t>(sizeof(float))));
}

// A whole unit on one thread: its splits one after another, merged as they come.
void AttendUnit(const Call& c, const Unit& u) {
  const int m = u.tile.tokens * c.group;
  const int64_t floats = c.StateFloats(m);
  float* memory = TaskScratch(2 * floats + c.kernels.attend_scratch(m, c.head_dim));
  float* work = memory + 2 * floats;
  const AttentionState state = c.StateAt(memory, m);
  const AttentionState other = c.StateAt(memory + floats, m);
  c.kernels.attend(u.tile, u.key_begin, u.SplitEnd(0), state, work);
  for (int64_t s = 1; s < u.splits(); ++s) {
    c.kernels.attend(u.tile, u.SplitBegin(s), u.SplitEnd(s), other, work);
    c.kernels.attend_merge(m, c.value_dim, state, other);
  }
  c.kernels.attend_finish(u.tile, state);
}

// Late tiles see the most keys: they go first. Tiles of one head are neighbours, so its keys stay
// in cache.
Unit UnitOf(const Call& c, const RowPlan& p, int64_t unit) {
  return MakeUnit(c, p, unit / p.tiles, p.tiles - 1 - unit % p.tiles);
}

void RunUnit(const Call& c, int64_t task) {
  int64_t within;
  const RowPlan& p = FindRow(c, task, &within);
  AttendUnit(c, UnitOf(c, p, within));
}

// One split of a unit, or all of a unit that has one part. The last of the arithmetic is left to
// MergeUnit where there are several.
void RunSplit(const Call& c, int64_t task) {
  int64_t within;
  const RowPlan& p = FindRow(c, task, &within);
  const int64_t split = within % p.parts;
  const Unit u = UnitOf(c, p, within / p.parts);
  if (p.parts == 1) return AttendUnit(c, u);
  const int m = u.tile.tokens * c.group;
  const AttentionState state = c.StateAt(c.states + task * c.StateFloats(c.max_rows), m);
  c.kernels.attend(u.tile, u.SplitBegin(split), u.SplitEnd(split), state,
                   TaskScratch(c.kernels.attend_scratch(m, c.head_dim)));
}

// The splits of the unit whose first task is `task`, merged in order.
void MergeUnit(const Call& c, int64_t task) {
  int64_t within;
  const RowPlan& p = FindRow(c, task, &within);
  if (p.parts == 1 || within % p.parts != 0) return;
  const Unit u = UnitOf(c, p, within / p.parts);
  const int m = u.tile.tokens * c.group;
  const int64_t step = c.StateFloats(c.max_rows);
  const AttentionState state = c.StateAt(c.states + task * step, m);
  for (int64_t s = 1; s < p.parts; ++s) {
    c.kernels.attend_merge(m, c.value_dim, state, c.StateAt(c.states + (task + s) * step, m));
  }
  c.kernels.attend_finish(u.tile, state);
}

}  // namespace

Status PagedAttention(const PagedAttentionArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  AttendRows(a);
  return Status::Ok();
}

void AttendRows(const PagedAttentionArgs& a) {
  Call c(a);
  const int threads = NumThreads();
  const int64_t plan_bytes =
      a.row_slot.shape[0] * static_cast<int64_t>(sizeof(RowPlan)) + kPlanSlack;
  c.rows = static_cast<RowPlan*>(ThreadScratch(ScratchUse::kPlan, plan_bytes));
  PlanRows(&c, threads);
  if (!c.split_tasks) {
    if (c.small) {
      for (int64_t t = 0; t < c.tasks; ++t) RunUnit(c, t);
    } else {
      ParallelFor(c.tasks, [&](int64_t t) { RunUnit(c, t); });
    }
    return;
  }
  const int64_t state_bytes =
      c.tasks * c.StateFloats(c.max_rows) * static_cast<int64_t>(sizeof(float));
  c.states = static_cast<float*>(ThreadScratch(ScratchUse::kCall, state_bytes));
  ParallelFor(c.tasks, [&](int64_t t) { RunSplit(c, t); });
  // A merge reads a few rows per split: microseconds in all, less than waking the team again.
  for (int64_t t = 0; t < c.tasks; ++t) MergeUnit(c, t);
}

}  // namespace octavo::cpu
