// What the kernels between the projections and attention are told, and the one for common shapes.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "common/rows.h"
#include "octavo/ops.h"
#include "rows/rotate.cuh"

namespace octavo::cuda {

struct CachePlace {
  char* cache;  // null: k stays where it is, and there is no v
  int64_t block_stride, value_stride, head_stride, place_stride;  // bytes
  int64_t slots;
  int32_t block_size;
  float k_scale, v_scale;  // of a cache in e4m3; 0: the cache holds T
};

struct QkvParams {
  char* q;
  char* k;
  const char* v;
  RowStrides q_stride, k_stride, v_stride;
  const char* q_norm;  // null: no norms
  const char* k_norm;
  const int32_t* position;
  const int64_t* slot;
  RotaryTable table;
  CachePlace place;
  int64_t tokens;
  int32_t token_heads;  // q, k and, with a cache, v
  int32_t q_heads;
  int32_t kv_heads;
  int32_t head_dim;
  float eps;
  float offset;
};

QkvParams QkvParamsOf(const NormRopeCacheArgs& a);

// Whether the pair kernel takes these heads: halves of a power of two of 16-byte pieces, all of the
// head turned, rows and angles on 16 bytes.
bool FitsPairs(DType dtype, const QkvParams& p, bool wide);
bool FitsPairs(const NormRopeCacheArgs& a, const QkvParams& p);

// REQUIRES: FitsPairs.
Status LaunchPairs(DType dtype, const QkvParams& p, cudaStream_t stream);

}  // namespace octavo::cuda
