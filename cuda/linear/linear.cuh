// out = x weight^T + bias for 1 to 16 rows of x: every weight is read once, at the speed of memory.
//
// Shapes: x [M, K], weight [N, K], bias [N], out [M, N]; K a multiple of 8. mma.sync m16n8k16 with
// the weight as its A operand, so that the rows of x fill the n side. The order of k inside a block
// of 32 is permuted alike in both operands: a lane's 16-byte piece of a weight row and of an x row
// then are MMA registers as they lie in memory.
//
// Grid: persistent, one CTA a multiprocessor; a CTA takes tiles of 8 * kGroups weight rows, its
// warps every n-th unit of 64 k. Each lane loads its own pieces ahead by cp.async into a ring that
// nobody else reads, so the loop has no barrier. At a tile's end the warps' sums are added in
// shared memory in the order of the warps: an element has the same bits for any M.
//
// Bound by bytes: N * K elements of weight; x comes from L2 for every tile.
#pragma once

#include "common/element.cuh"
#include "common/host_device.h"
#include "common/ptx.cuh"
#include "linear/linear.h"

namespace octavo::cuda {

inline constexpr int kUnit = kLinearUnit;  // 128 bytes of a row
inline constexpr int kPieceElements = 8;   // of 16 bits
inline constexpr int kGroupRows = 8;
inline constexpr int kTokensOfMma = 8;

template <typename ElementT, int kGroupsV, int kTokenTilesV>
struct LinearShape {
  using Element = ElementT;
  static constexpr int kGroups = kGroupsV;
  static constexpr int kPairs = (kGroups + 1) / 2;  // of row groups: the m side of an MMA
  static constexpr int kTokenTiles = kTokenTilesV;
  static constexpr int kTokens = kTokenTiles * kTokensOfMma;
  static constexpr int kRows = kGroups * kGroupRows;
  static constexpr int kStages = LinearStages(kGroups, kTokenTiles);
  static constexpr int kWeightBytes = kGroups * kGroupRows * kUnit * 2;
  static constexpr int kStageBytes = LinearStageBytes(kGroups, kTokenTiles);
  static_assert(sizeof(Element) == 2);
};

// Which warps work together, and on which tiles.
struct Team {
  int number;  // in the CTA
  int warp;    // in the team
  int first_tile;
  int tile_step;

  __device__ __forceinline__ explicit Team(const LinearParams& p) {
    const int of_cta = threadIdx.x / kWarpSize, teams = p.warps / p.team_warps;
    number = of_cta / p.team_warps;
    warp = of_cta - number * p.team_warps;
    // Neighbouring multiprocessors begin with neighbouring tiles: the last round then is spread.
    first_tile = number * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
    tile_step = static_cast<int>(gridDim.x) * teams;
  }

  // A barrier of the team alone. Number 0 is that of the whole CTA.
  __device__ __forceinline__ void Sync(const LinearParams& p) const {
    SyncThreadsOf(number + 1, p.team_warps * kWarpSize);
  }
};

// The units of one warp, in the order of its team's tiles.
struct UnitWalk {
  int tile, unit;

  __device__ __forceinline__ UnitWalk(const LinearParams& p, const Team& team)
      : tile(team.warp < p.units ? team.first_tile : p.tiles), unit(team.warp) {}
  __device__ __forceinline__ bool live(const LinearParams& p) const { return tile < p.tiles; }
  __device__ __forceinline__ void Advance(const LinearParams& p, const Team& team) {
    unit += p.team_warps;
    if (unit < p.units) return;
    unit = team.warp;
    tile += team.tile_step;
  }
};

template <class S>
__device__ __forceinline__ void IssueWeight(const LinearParams& p, const UnitWalk& walk,
                                            uint32_t stage) {
  const int lane = threadIdx.x % kWarpSize, g = lane / 4, c = lane % 4;
  const int k = walk.unit * kUnit + c * kPieceElements;
#pragma unroll
  for (int h = 0; h < S::kGroups; ++h) {
    const int row = walk.tile * S::kRows + h * kGroupRows + g;
    const char* const at = p.weight + row * p.weight_stride + k * 2;
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const bool live = row < p.n && k + q * (kUnit / 2) < p.k;
      CopyAsync16OrZero(stage + (h * 2 + q) * (kWarpSize * kPieceBytes),
                        live ? at + q * kUnit : p.weight, live);
    }
  }
}

// A lane's pieces of x for one unit, past L1: an earlier kernel on this multiprocessor may have
// left there what x held before.
template <class S>
__device__ __forceinline__ void IssueInputs(const LinearParams& p, const UnitWalk& walk,
                                            uint32_t stage) {
  const int lane = threadIdx.x % kWarpSize, g = lane / 4, c = lane % 4;
  const int k = walk.unit * kUnit + c * kPieceElements;
#pragma unroll
  for (int b = 0; b < S::kTokenTiles; ++b) {
    const int token = b * kTokensOfMma + g;
    const char* const at = p.x + token * p.x_stride + k * 2;
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const bool live = token < p.m && k + q * (kUnit / 2) < p.k;
      CopyAsync16OrZero(stage + S::kWeightBytes + (b * 2 + q) * (kWarpSize * kPieceBytes),
                        live ? at + q * kUnit : p.x, live);
    }
  }
}

template <class S>
struct LinearSums {
  float c[S::kPairs][S::kTokenTiles][4];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int h = 0; h < S::kPairs; ++h) {
#pragma unroll
      for (int b = 0; b < S::kTokenTiles; ++b) {
#pragma unroll
        for (int e = 0; e < 4; ++e) c[h][b][e] = 0.0f;
      }
    }
  }

  __device__ __forceinline__ void AddUnit(uint32_t stage) {
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      uint4 x[S::kTokenTiles];
#pragma unroll
      for (int b = 0; b < S::kTokenTiles; ++b) {
        x[b] = LoadShared16(stage + S::kWeightBytes + (b * 2 + q) * (kWarpSize * kPieceBytes));
      }
#pragma unroll
      for (int h = 0; h < S::kPairs; ++h) {
        const auto piece = [&](int group) {
          return LoadShared16(stage + (group * 2 + q) * (kWarpSize * kPieceBytes));
        };
        const uint4 low = piece(2 * h);
        uint4 high = make_uint4(0, 0, 0, 0);
        if constexpr (S::kGroups > 1) high = piece(2 * h + 1);
        const uint32_t first[4] = {low.x, high.x, low.y, high.y};
        const uint32_t second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
        for (int b = 0; b < S::kTokenTiles; ++b) {
          Mma16x8x16<typename S::Element>(c[h][b], first, x[b].x, x[b].y);
          Mma16x8x16<typename S::Element>(c[h][b], second, x[b].z, x[b].w);
        }
      }
    }
  }

  // To [rows, tokens] of this warp.
  __device__ __forceinline__ void Leave(float* to) const {
    const int lane = threadIdx.x % kWarpSize, g = lane / 4, c2 = lane % 4 * 2;
#pragma unroll
    for (int h = 0; h < S::kPairs; ++h) {
#pragma unroll
      for (int b = 0; b < S::kTokenTiles; ++b) {
#pragma unroll
        for (int half = 0; half < (S::kGroups > 1 ? 2 : 1); ++half) {
          const int row = h * 2 * kGroupRows + half * kGroupRows + g;
          *reinterpret_cast<float2*>(to + row * S::kTokens + b * kTokensOfMma + c2) =
              make_float2(c[h][b][2 * half], c[h][b][2 * half + 1]);
        }
      }
    }
  }
};

// Adds the sums of a team's warps, in their order, and stores the tile. Neighbouring threads take
// neighbouring rows of the weight, which are neighbours in out.
template <class S>
__device__ __forceinline__ void StoreTile(const LinearParams& p, int tile, const float* sums) {
  using T = typename S::Element;
  const int threads = p.team_warps * kWarpSize;
  for (int i = static_cast<int>(threadIdx.x) % threads; i < S::kRows * p.m; i += threads) {
    const int token = i / S::kRows, row = i - token * S::kRows;
    const int n = tile * S::kRows + row;
    if (n >= p.n) continue;
    float sum = 0.0f;
    for (int w = 0; w < p.team_warps; ++w) {
      sum += sums[(w * S::kRows + row) * S::kTokens + token];
    }
    if (p.bias != nullptr) sum += ToFloat(reinterpret_cast<const T*>(p.bias)[n]);
    Store(reinterpret_cast<T*>(p.out + token * p.out_stride) + n, sum);
  }
}

template <class S>
__global__ void __launch_bounds__(kMaxLinearWarps* kWarpSize, 1)
    LinearKernel(const __grid_constant__ LinearParams p) {
  unsigned char* const shared = DynamicShared();
  const Team team(p);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const uint32_t ring =
      SharedAddress(shared) + warp * S::kStages * S::kStageBytes + lane * kPieceBytes;
  float* const sums = reinterpret_cast<float*>(shared + p.warps * S::kStages * S::kStageBytes) +
                      team.number * p.team_warps * S::kRows * S::kTokens;
  if (!p.weight_ready) GridDependencyWait();
  UnitWalk weights(p, team), inputs(p, team);
#pragma unroll 1
  for (int i = 0; i < S::kStages - 1 && weights.live(p); ++i, weights.Advance(p, team)) {
    IssueWeight<S>(p, weights, ring + i * S::kStageBytes);
  }
  if (p.weight_ready) GridDependencyWait();
  GridDependencyLaunch();
  // The first group holds all weights of the stages so far; they are waited for together.
#pragma unroll 1
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (inputs.live(p)) {
      IssueInputs<S>(p, inputs, ring + i * S::kStageBytes);
      inputs.Advance(p, team);
    }
    CopyAsyncCommit();
  }
  LinearSums<S> acc;
  int write = S::kStages - 1, read = 0;
#pragma unroll 1
  for (int tile = team.first_tile; tile < p.tiles; tile += team.tile_step) {
    acc.Clear();
#pragma unroll 1
    for (int unit = team.warp; unit < p.units; unit += p.team_warps) {
      if (weights.live(p)) {  // into the stage that was read in the turn before
        IssueWeight<S>(p, weights, ring + write * S::kStageBytes);
        IssueInputs<S>(p, weights, ring + write * S::kStageBytes);
        weights.Advance(p, team);
      }
      CopyAsyncCommit();  // also when empty: waiting counts groups
      write = write == S::kStages - 1 ? 0 : write + 1;
      CopyAsyncWait<S::kStages - 1>();
      acc.AddUnit(ring + read * S::kStageBytes);
      read = read == S::kStages - 1 ? 0 : read + 1;
    }
    acc.Leave(sums + team.warp * S::kRows * S::kTokens);
    team.Sync(p);
    StoreTile<S>(p, tile, sums);
    team.Sync(p);
  }
}

// One instantiation each, in linear_<dtype>.cu.
template <typename T>
Status LaunchLinearOf(const LinearChoice& choice, const LinearParams& p, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(choice.ctas);
  shape.threads = static_cast<unsigned>(p.warps * kWarpSize);
  shape.shared_bytes = choice.shared_bytes();
  shape.stream = stream;
  const auto launch = [&](auto groups) {
    constexpr int kGroups = decltype(groups)::value;
    return choice.token_tiles == 1
               ? LaunchDependent(LinearKernel<LinearShape<T, kGroups, 1>>, shape, p)
               : LaunchDependent(LinearKernel<LinearShape<T, kGroups, 2>>, shape, p);
  };
  switch (choice.groups) {
    case 1:
      return launch(std::integral_constant<int, 1>{});
    case 2:
      return launch(std::integral_constant<int, 2>{});
    default:
      return launch(std::integral_constant<int, 4>{});
  }
}

}  // namespace octavo::cuda
