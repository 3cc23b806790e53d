// The decode kernel that takes queries, keys and values as the projections left them: its
// parameters and launchers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/decode.h"
#include "rows/qkv.h"

namespace octavo::cuda {

struct FreshDecodeParams {
  DecodeParams decode;  // beside_prefill is false
  QkvParams rows;       // of the same cache
};

// Up to so many tokens a step is bound by the number of its kernels. With more of them the kernel
// that norms, turns and stores has better things to do than to be waited for. No units are dealt in
// their plans.
inline constexpr int64_t kMaxFreshTokens = 16;

// One instantiation each, in decode_fresh_<head dim>_<dtype>.cu.
template <typename T, int kHeadDim>
Status LaunchFreshDecodeOf(const FreshDecodeParams& p, const LaunchShape& launch);
extern template Status LaunchFreshDecodeOf<__nv_bfloat16, 64>(const FreshDecodeParams&,
                                                              const LaunchShape&);
extern template Status LaunchFreshDecodeOf<__nv_bfloat16, 128>(const FreshDecodeParams&,
                                                               const LaunchShape&);
extern template Status LaunchFreshDecodeOf<__nv_bfloat16, 256>(const FreshDecodeParams&,
                                                               const LaunchShape&);
extern template Status LaunchFreshDecodeOf<__half, 64>(const FreshDecodeParams&,
                                                       const LaunchShape&);
extern template Status LaunchFreshDecodeOf<__half, 128>(const FreshDecodeParams&,
                                                        const LaunchShape&);
extern template Status LaunchFreshDecodeOf<__half, 256>(const FreshDecodeParams&,
                                                        const LaunchShape&);

}  // namespace octavo::cuda
