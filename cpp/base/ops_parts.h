// The plain ops that a fused one stands for.
#pragma once

#include "octavo/ops.h"

namespace octavo {

inline RmsNormArgs NormOf(const NormRopeCacheArgs& a, const TensorView& x,
                          const TensorView& weight) {
  return {x, x, weight, a.eps, a.weight_offset};
}

inline RopeArgs RopeOf(const NormRopeCacheArgs& a) {
  return {a.q, a.k, a.position, a.cos_sin, a.interleaved};
}

inline CacheWriteArgs CacheWriteOf(const NormRopeCacheArgs& a) {
  return {a.k, a.v, a.cache, a.slot};
}

}  // namespace octavo
