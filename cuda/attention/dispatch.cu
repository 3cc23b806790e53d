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

// The dtype changes no size.
template <int kHeadDim>
Resources DecodeResources(bool pair) {
  using Shapes = DecodeShapesOf<__half, kHeadDim>;
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

template <typename T>
Status DecodeByHeadDim(const DecodeChoice& c, const DecodeParams& p, const LaunchShape& launch) {
  switch (c.head_dim) {
    case 64:
      return LaunchDecodeOf<T, 64>(c, p, launch);
    case 128:
      return LaunchDecodeOf<T, 128>(c, p, launch);
    default:
      return LaunchDecodeOf<T, 256>(c, p, launch);
  }
}

template <typename T>
Status PrefillByHeadDim(int head_dim, const PrefillParams& p, const LaunchShape& launch) {
  switch (head_dim) {
    case 64:
      return LaunchPrefillOf<T, 64>(p, launch);
    case 128:
      return LaunchPrefillOf<T, 128>(p, launch);
    default:
      return LaunchPrefillOf<T, 256>(p, launch);
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
  return choice.half ? DecodeByHeadDim<__half>(choice, p, launch)
                     : DecodeByHeadDim<__nv_bfloat16>(choice, p, launch);
}

Status LaunchPrefill(int head_dim, bool half, const PrefillParams& p, const LaunchShape& launch) {
  return half ? PrefillByHeadDim<__half>(head_dim, p, launch)
              : PrefillByHeadDim<__nv_bfloat16>(head_dim, p, launch);
}

}  // namespace octavo::cuda
