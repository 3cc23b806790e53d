// The attention kernel for whatever the fast ones do not take.
#pragma once

#include "attention/params.h"
#include "common/launch.h"
#include "octavo/dtype.h"

namespace octavo::cuda {

struct GenericParams {
  LayerParams layer;
  int64_t token_stride;  // of the cache, bytes
  const int32_t* query_start;
  const int32_t* seq_len;
  const int32_t* row_slot;
  int32_t rows;
  int32_t heads;  // query heads
  int32_t head_dim;
  float scale;
  float soft_cap;  // 0: off
};

// `fp8`: the cache, which is of `dtype` otherwise.
Status LaunchGeneric(DType dtype, bool fp8, int64_t tokens, const GenericParams& p,
                     const LaunchShape& launch);

}  // namespace octavo::cuda
