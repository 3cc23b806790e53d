// Paged causal prefill and append attention for rows of many query tokens, on wgmma and TMA: for
// GPUs of compute capability 9.0 alone.
//
// Shapes as PagedAttentionArgs; bfloat16 or float16; D = 64, 128, 256; blocks of k * 16 tokens.
// Grid: persistent, one CTA a multiprocessor; (tile, KV head) items, the most expensive first, by
// the ticket that the portable kernel uses. A tile's rows are packed queries, token * group + head;
// where the group does not divide 128 the last rows stay empty.
//
// Warpgroup 0 loads by TMA: K and V in boxes of 16 tokens x 64 dims, so that a block table entry
// becomes a coordinate; queries in boxes of a tile's tokens x a group's heads x 64 dims.
// Warpgroups 1 and 2 compute (prefill_wgmma_math.cuh). Stages of K and of V are handed over
// one by one. Keys run from the diagonal down. No value past a row's length is read as it lies in
// the cache: blocks behind it load as zeros, and the rest of its last block is cleared.
//
// Bound by FLOPs: 4 * D for each query-key pair and head. Source: FlashAttention-3 (arXiv
// 2407.08608).
#pragma once

#include "attention/prefill_wgmma_load.cuh"
#include "attention/prefill_wgmma_math.cuh"

namespace octavo::cuda {

// Warps of the loading warpgroup; the last one draws tickets.
inline constexpr int kKeyWarp = 0, kValueWarp = 1, kQueryWarp = 2;

template <class S>
__device__ __forceinline__ void LoadWarpgroup(const WgmmaParams& p, const WgmmaPipe<S>& pipe,
                                              PrefillTile* tickets) {
  ShrinkRegisters<S::kLoaderRegisters>();
  const int warp = __shfl_sync(kFullWarp, threadIdx.x / kWarpSize, 0);
  FenceAsyncGlobal();  // other kernels wrote Q, K and V by ordinary stores
  if (warp == kKeyWarp) {
    BoxProducer<S, false>(p, pipe).Run(tickets);
  } else if (warp == kValueWarp) {
    BoxProducer<S, true>(p, pipe).Run(tickets);
  } else if (warp == kQueryWarp) {
    LoadQueries<S>(p, pipe, tickets);
  } else if (threadIdx.x % kWarpSize == 0) {
    DrawTickets<S>(p.prefill, pipe, tickets);
  }
}

template <class S>
__global__ __launch_bounds__(S::kThreads,
                             1) void WgmmaPrefillKernel(const __grid_constant__ WgmmaParams p) {
#ifdef OCTAVO_SM90A
  unsigned char* const dynamic = DynamicShared();
  const uint32_t begin = SharedAddress(dynamic);
  const uint32_t base = CeilDiv(begin, uint32_t{kSwizzleBlock}) * kSwizzleBlock;
  const WgmmaPipe<S> pipe{base};
  auto* const tickets = reinterpret_cast<PrefillTile*>(dynamic + (base - begin) + S::kTicketAt);
  if (threadIdx.x == 0) pipe.Init();
  __syncthreads();
  GridDependencyWait();
  GridDependencyLaunch();
  const int warpgroup = __shfl_sync(kFullWarp, threadIdx.x / kWarpgroupSize, 0);
  if (warpgroup == 0) {
    LoadWarpgroup<S>(p, pipe, tickets);
  } else {
    GrowRegisters<S::kConsumerRegisters>();
    WgmmaConsumer<S>(p.prefill, pipe, warpgroup - 1).Run(tickets);
  }
#endif
}

template <typename T, int kHeadDim>
Status LaunchWgmmaOf(const WgmmaParams& p, const LaunchShape& launch) {
  using S = WgmmaShapeOf<T, kHeadDim>;
  LaunchShape shape = launch;
  shape.threads = S::kThreads;
  shape.shared_bytes = S::kSharedBytes;
  return Launch(WgmmaPrefillKernel<S>, shape, p);
}

}  // namespace octavo::cuda
