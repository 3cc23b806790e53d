// Finds what each row of one query has in common with the row before it: tokens whose blocks are
// the same by both rows' lines of the block table.
//
// Inputs: as CommonParams. Output: common [R] int32, 0 where either row may not share.
// Grid: a warp a row. Blocks are compared in order, kAtOnce times 32 of them in flight, up to the
// first that differ. Bound by latency; once a step for all layers.
#include "attention/plan.h"
#include "attention/sharing.h"
#include "common/ptx.cuh"

namespace octavo::cuda {
namespace {

constexpr int kCommonThreads = 256;
constexpr int kCommonWarps = kCommonThreads / kWarpSize;
constexpr int kAtOnce = 4;

// The line of the block table of a row that may share, or null.
__device__ __forceinline__ const int32_t* LineOf(const CommonParams& p, int row, int32_t length) {
  const int32_t slot = p.row_slot[row];
  const bool shares = MayShare(p.query_start[row + 1] - p.query_start[row], length);
  return shares && slot >= 0 && slot < p.slots ? p.table + slot * p.table_stride : nullptr;
}

// The number of leading blocks, of `blocks`, that two lines have in common. All of a warp comes.
__device__ __forceinline__ int CommonBlocks(const int32_t* a, const int32_t* b, int blocks) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll 1
  for (int first = 0; first < blocks; first += kAtOnce * kWarpSize) {
    bool differs[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int block = first + i * kWarpSize + lane;
      differs[i] = block < blocks && a[block] != b[block];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const unsigned vote = __ballot_sync(kFullWarp, differs[i]);
      if (vote != 0) return first + i * kWarpSize + __ffs(static_cast<int>(vote)) - 1;
    }
  }
  return blocks;
}

__global__ __launch_bounds__(kCommonThreads) void CommonKernel(
    const __grid_constant__ CommonParams p) {
  GridDependencyWait();
  GridDependencyLaunch();
  const int row = static_cast<int>(blockIdx.x) * kCommonWarps + threadIdx.x / kWarpSize;
  if (row >= p.rows) return;
  int common = 0;
  if (row > 0) {
    const int32_t length = p.seq_len[row], before = p.seq_len[row - 1];
    const int32_t* const mine = LineOf(p, row, length);
    const int32_t* const other = LineOf(p, row - 1, before);
    if (mine != nullptr && other != nullptr) {
      const int most = MostShared(Min(length, before));
      const int blocks = Min(CeilDiv(most, p.block_size), Min(p.max_blocks, kMostComparedBlocks));
      common = Min(most, CommonBlocks(mine, other, blocks) * p.block_size);
    }
  }
  if (threadIdx.x % kWarpSize == 0) p.common[row] = common;
}

}  // namespace

Status LaunchCommon(const CommonParams& params, bool dependent, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(CeilDiv(params.rows, kCommonWarps));
  shape.threads = kCommonThreads;
  shape.dependent = dependent;
  shape.stream = stream;
  return Launch(CommonKernel, shape, params);
}

}  // namespace octavo::cuda
