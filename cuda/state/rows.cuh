// The rows of a step, as the ops that keep states see them.
#pragma once

#include "attention/schedule.h"

namespace octavo::cuda {

struct StateRows {
  const int32_t* query_start;  // [rows + 1]
  const int32_t* source;       // [rows]
  const int32_t* target;
  int32_t rows;
  int32_t tokens;  // of x
  int32_t blocks;  // of states

  struct Row {
    int32_t first;
    int32_t tokens;  // 0: the row is skipped
    int32_t source;  // negative: from zero
    int32_t target;
  };

  __device__ __forceinline__ Row At(int r) const {
    Row row{query_start[r], 0, source[r], target[r]};
    const int32_t end = query_start[r + 1];
    const bool good = row.first >= 0 && end <= tokens && row.source < blocks && row.target >= 0 &&
                      row.target < blocks;
    if (good && end > row.first) row.tokens = end - row.first;
    return row;
  }
};

}  // namespace octavo::cuda
