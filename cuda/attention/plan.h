// The kernel that writes a step's attention plan, and where the plan's parts lie in memory.
#pragma once

#include <cstdint>

#include "attention/schedule.h"
#include "common/launch.h"

namespace octavo::cuda {

// Pointers into a plan's memory.
struct PlanParts {
  CtaWork* ctas = nullptr;       // [shape.ctas]
  Segment* segments = nullptr;   // [decode segments]
  PrefillTile* tiles = nullptr;  // [prefill tiles], the most expensive first
  int32_t* prefill = nullptr;    // {tiles, next item to take, CTAs that are done}
  uint32_t* ticket = nullptr;    // of the next segment that is dealt
  uint32_t* arrived = nullptr;   // [slots]: splits of an item whose partial result is written
  float* sums = nullptr;         // [slots, columns, head dim]: softmax-weighted sums of V
  float2* stats = nullptr;       // [slots, columns]: maximum (log2) and sum of weights
  int32_t* common =
      nullptr;  // [rows], where prefixes are shared: tokens in common with the row before
  // The states of rows' shared keys, as those of the slots: [shared states, heads, head dim] and
  // [shared states, heads], with state p * rows + r for part p of row r.
  float* shared_sums = nullptr;
  float2* shared_stats = nullptr;
  int64_t bytes = 0;
};

inline constexpr int kPrefillCount = 0, kPrefillTicket = 1, kPrefillDone = 2, kPrefillWords = 3;

struct PlanCapacity {
  int64_t segments = 0;
  int64_t tiles = 0;
  int64_t slots = 0;
  int64_t shared_states = 0;
};

// What `shape` can ask for with up to `tokens` query tokens.
PlanCapacity CapacityOf(const PlanShape& shape, int64_t tokens);

PlanParts LayOutPlan(void* memory, const PlanShape& shape, const PlanCapacity& capacity,
                     int64_t head_dim);

struct PlanParams {
  PlanShape shape;
  const int32_t* query_start;
  const int32_t* seq_len;
  const int32_t* row_slot;
  PlanParts parts;
};

// Where rows' blocks are.
struct CommonParams {
  const int32_t* query_start;
  const int32_t* seq_len;
  const int32_t* row_slot;
  const int32_t* table;  // [slots, max_blocks]
  int64_t table_stride;  // elements
  int32_t slots;
  int32_t max_blocks;
  int32_t block_size;
  int32_t rows;
  int32_t* common;  // PlanParts::common
};

// Writes what neighbouring rows have in common, which LaunchPlan reads of a shape that shares.
Status LaunchCommon(const CommonParams& params, bool dependent, cudaStream_t stream);

// `segments`: their capacity, which decides how many CTAs write them.
Status LaunchPlan(const PlanParams& params, int64_t segments, bool dependent, cudaStream_t stream);

}  // namespace octavo::cuda
