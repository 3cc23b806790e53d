// The parameters of the grouped product, how its work is cut, and its launchers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/launch.h"

namespace octavo::cuda {

inline constexpr int kMaxGroupedExperts = 1024;  // what their ranges take of shared memory

struct GroupedParams {
  const char* weight;  // [E, M, K]
  const char* x;       // [P, K]
  char* out;           // [P, M]
  const char* bias;    // [E, M], or null
  const int32_t* start;
  int64_t expert_stride, weight_stride, x_stride, out_stride, bias_stride;  // bytes
  int32_t experts;
  int32_t places;  // P
  int32_t m, k;
};

// How many rows an expert has on average decides the tile; what is computed is the same bits in
// any: a product's terms are added in the order of k by one warp.
enum class GroupedTile { kFew, kSome, kMany };

inline GroupedTile ChooseGroupedTile(int64_t places, int64_t experts) {
  if (places <= 16 * experts) return GroupedTile::kFew;
  return places <= 64 * experts ? GroupedTile::kSome : GroupedTile::kMany;
}

// One instantiation each, in grouped_<dtype>.cu.
template <typename T>
Status LaunchGroupedOf(GroupedTile tile, const GroupedParams& p, const DeviceFacts& facts,
                       cudaStream_t stream);
extern template Status LaunchGroupedOf<__nv_bfloat16>(GroupedTile, const GroupedParams&,
                                                      const DeviceFacts&, cudaStream_t);
extern template Status LaunchGroupedOf<__half>(GroupedTile, const GroupedParams&,
                                               const DeviceFacts&, cudaStream_t);

}  // namespace octavo::cuda
