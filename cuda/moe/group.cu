// moe_group: the pairs of token and expert sorted by expert, those of one expert by token.
//
// Shapes: ids and place [N, k] int32, token [N * k], start [E + 1]. Grid: a CTA an expert. Each
// looks at all pairs, first to count those before it and its own, then to place its own: no
// workspace, no order of atomics, and E times N * k numbers from L2 are few microseconds. A warp
// has a run of neighbouring pairs, so that places rise with the tokens. A pair whose id is out of
// range gets place -1; the places that then nobody owns name token 0.
#include <string>

#include "base/ops_check.h"
#include "common/launch.h"
#include "common/ptx.cuh"
#include "octavo/cuda_layers.h"

namespace octavo::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;

struct GroupParams {
  const int32_t* ids;
  int32_t* place;
  int32_t* token;
  int32_t* start;
  int64_t ids_stride, place_stride;  // elements
  int32_t pairs;
  int32_t k;
  int32_t experts;
};

struct Counts {
  int before;  // pairs of lower experts
  int own;
};

__device__ __forceinline__ int SumOfLanes(int x) {
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) x += __shfl_xor_sync(kFullWarp, x, step);
  return x;
}

__device__ __forceinline__ int IdOf(const GroupParams& p, int pair) {
  const int n = pair / p.k;
  return p.ids[n * p.ids_stride + (pair - n * p.k)];
}

__device__ __forceinline__ Counts CountRun(const GroupParams& p, int expert, int begin, int end) {
  Counts counts{0, 0};
  for (int i = begin + threadIdx.x % kWarpSize; i < end; i += kWarpSize) {
    const int id = IdOf(p, i);
    counts.before += id >= 0 && id < expert ? 1 : 0;
    counts.own += id == expert ? 1 : 0;
  }
  return {SumOfLanes(counts.before), SumOfLanes(counts.own)};
}

// Places this expert's pairs of a run from `next` on, in their order.
__device__ __forceinline__ void PlaceRun(const GroupParams& p, int expert, int begin, int end,
                                         int next) {
  const int lane = threadIdx.x % kWarpSize;
  for (int first = begin; first < end; first += kWarpSize) {
    const int pair = first + lane;
    const int id = pair < end ? IdOf(p, pair) : -1;
    const bool mine = id == expert;
    const unsigned all = __ballot_sync(kFullWarp, mine);
    if (mine) {
      const int place = next + __popc(all & ((1u << lane) - 1)), n = pair / p.k;
      p.place[n * p.place_stride + (pair - n * p.k)] = place;
      p.token[place] = n;
    }
    next += __popc(all);
  }
}

// What no expert owns, by the last expert's CTA.
__device__ __forceinline__ void DropStrays(const GroupParams& p, int placed) {
  for (int i = threadIdx.x; i < p.pairs; i += kThreads) {
    const int id = IdOf(p, i), n = i / p.k;
    if (id < 0 || id >= p.experts) p.place[n * p.place_stride + (i - n * p.k)] = -1;
    if (i >= placed) p.token[i] = 0;
  }
}

__global__ void __launch_bounds__(kThreads) GroupKernel(const __grid_constant__ GroupParams p) {
  __shared__ Counts counts[kWarps];
  GridDependencyWait();
  GridDependencyLaunch();
  const int expert = blockIdx.x, warp = threadIdx.x / kWarpSize;
  const int run = (p.pairs + kThreads - 1) / kThreads * kWarpSize;
  const int begin = warp * run < p.pairs ? warp * run : p.pairs;
  const int end = p.pairs - begin < run ? p.pairs : begin + run;
  const Counts mine = CountRun(p, expert, begin, end);
  if (threadIdx.x % kWarpSize == 0) counts[warp] = mine;
  __syncthreads();
  int first = 0, next = 0, own = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    first += counts[w].before;
    next += w < warp ? counts[w].own : 0;
    own += counts[w].own;
  }
  if (threadIdx.x == 0) p.start[expert] = first;
  if (mine.own > 0) PlaceRun(p, expert, begin, end, first + next);
  if (expert + 1 < p.experts) return;
  if (threadIdx.x == 0) p.start[p.experts] = first + own;
  if (first + own < p.pairs) DropStrays(p, first + own);
}

}  // namespace

Status MoeGroup(const MoeGroupArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  GroupParams p{};
  p.ids = a.ids.ptr<int32_t>();
  p.place = a.place.ptr<int32_t>();
  p.token = a.token.ptr<int32_t>();
  p.start = a.start.ptr<int32_t>();
  p.ids_stride = a.ids.stride[0];
  p.place_stride = a.place.stride[0];
  p.pairs = static_cast<int32_t>(a.ids.shape[0] * a.ids.shape[1]);
  p.k = static_cast<int32_t>(a.ids.shape[1]);
  p.experts = static_cast<int32_t>(a.start.shape[0] - 1);
  if (p.pairs > INT32_MAX - kThreads) {
    return InvalidOp("moe_group", "ids has 2^31 pairs: cut it by tokens");
  }
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(p.experts);
  shape.threads = kThreads;
  shape.stream = stream;
  return LaunchDependent(GroupKernel, shape, p);
}

}  // namespace octavo::cuda
