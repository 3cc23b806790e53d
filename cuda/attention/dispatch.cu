// From run-time choices to the instantiations: the one list of them.
#include "attention/decode.h"
#include "attention/prefill.h"

namespace octavo::cuda {
namespace {

// Multiprocessors keep a kilobyte of shared memory back for each CTA.
constexpr int kReservedShared = 1024;

struct Resources {
  int warps;
  int shared_bytes;
};

template <class S>
constexpr Resources ResourcesOf() {
  return {S::kWarps, S::kSharedBytes};
}

// The dtypes change no size.
template <int kHeadDim>
Resources DecodeResources(bool pair) {
  using Shapes = DecodeShapesOf<__half, __half, kHeadDim>;
  static_assert(Shapes::template Wide<1>::kSharedBytes ==
                DecodeShapesOf<__half, E4m3, kHeadDim>::template Wide<1>::kSharedBytes);
  return pair ? ResourcesOf<typename Shapes::template Pair<1>>()
              : ResourcesOf<typename Shapes::template Wide<1>>();
}

Resources ResourcesOf(const DecodeChoice& c) {
  switch (c.head_dim) {
    case 64:
      return DecodeResources<64>(c.pair);
    case 128:
      return DecodeResources<128>(c.pair);
    default:
      return DecodeResources<256>(c.pair);
  }
}

template <typename T, typename Cached>
Status DecodeByHeadDim(const DecodeChoice& c, const DecodeParams& p, const LaunchShape& launch) {
  switch (c.head_dim) {
    case 64:
      return LaunchDecodeOf<T, 64, Cached>(c, p, launch);
    case 128:
      return LaunchDecodeOf<T, 128, Cached>(c, p, launch);
    default:
      return LaunchDecodeOf<T, 256, Cached>(c, p, launch);
  }
}

template <typename T, typename Cached>
Status PrefillByHeadDim(int head_dim, const PrefillParams& p, const LaunchShape& launch) {
  switch (head_dim) {
    case 64:
      return LaunchPrefillOf<T, 64, Cached>(p, launch);
    case 128:
      return LaunchPrefillOf<T, 128, Cached>(p, launch);
    default:
      return LaunchPrefillOf<T, 256, Cached>(p, launch);
  }
}

}  // namespace

int DecodeWarps(const DecodeChoice& choice) { return ResourcesOf(choice).warps; }

int DecodeCtas(const DecodeChoice& choice, const DeviceFacts& facts) {
  if (!choice.pair) return 1;
  const int fit =
      facts.shared_per_multiprocessor / (ResourcesOf(choice).shared_bytes + kReservedShared);
  return Max(1, Min(fit, 2));
}

Status LaunchDecode(const DecodeChoice& choice, const DecodeParams& p, const LaunchShape& launch) {
  if (choice.fp8) {
    return choice.half ? DecodeByHeadDim<__half, E4m3>(choice, p, launch)
                       : DecodeByHeadDim<__nv_bfloat16, E4m3>(choice, p, launch);
  }
  return choice.half ? DecodeByHeadDim<__half, __half>(choice, p, launch)
                     : DecodeByHeadDim<__nv_bfloat16, __nv_bfloat16>(choice, p, launch);
}

Status LaunchPrefill(int head_dim, bool half, bool fp8, const PrefillParams& p,
                     const LaunchShape& launch) {
  if (fp8) {
    return half ? PrefillByHeadDim<__half, E4m3>(head_dim, p, launch)
                : PrefillByHeadDim<__nv_bfloat16, E4m3>(head_dim, p, launch);
  }
  return half ? PrefillByHeadDim<__half, __half>(head_dim, p, launch)
              : PrefillByHeadDim<__nv_bfloat16, __nv_bfloat16>(head_dim, p, launch);
}

}  // namespace octavo::cuda
