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
// On the way: with a norm every CTA finds the scale of all rows of x before its first tile, and a
// lane norms its pieces when it takes them from the ring (linear_norm.cuh). With a gate a tile has
// rows of the gate and the rows that they open, the low and the high half of an MMA's m side, and
// N / 2 columns come out. `add` reads at a tile's begin what is added at its end.
//
// Bound by bytes: N * K elements of weight; x comes from L2 for every tile.
#pragma once

#include "common/element.cuh"
#include "common/host_device.h"
#include "common/ptx.cuh"
#include "linear/linear.h"
#include "linear/linear_norm.cuh"
#include "rows/activation.cuh"

namespace octavo::cuda {

template <typename ElementT, int kGroupsV, int kTokenTilesV, LinearKind kKind>
struct LinearShape {
  using Element = ElementT;
  static constexpr bool kNorm = HasNorm(kKind), kGated = HasGate(kKind);
  static constexpr int kGroups = kGroupsV;
  static constexpr int kPairs = (kGroups + 1) / 2;  // of row groups: the m side of an MMA
  static constexpr int kTokenTiles = kTokenTilesV;
  static constexpr int kTokens = kTokenTiles * kTokensOfMma;
  static constexpr int kRows = kGroups * kGroupRows;
  static constexpr int kColumns = kGated ? kRows / 2 : kRows;  // of out
  static constexpr int kStages = LinearStages(kGroups, kTokenTiles);
  static constexpr int kWeightBytes = kGroups * kGroupRows * kUnit * 2;
  static constexpr int kSumFloats = kRows * kTokens;  // of a warp
  static_assert(sizeof(Element) == 2);
  static_assert(!kGated || kGroups % 2 == 0, "an MMA takes rows of the gate and what they open");

  // The column of out that row g of a group belongs to.
  __device__ static __forceinline__ int ColumnOf(int tile, int group, int g) {
    return tile * kColumns + (kGated ? group / 2 : group) * kGroupRows + g;
  }
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
    const int column = S::ColumnOf(walk.tile, h, g);
    const int row = S::kGated && h % 2 == 1 ? p.n + column : column;
    const char* const at = p.weight + row * p.weight_stride + k * 2;
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const bool live = column < p.n && k + q * (kUnit / 2) < p.k;
      CopyAsync16OrZero(stage + (h * 2 + q) * (kWarpSize * kPieceBytes),
                        live ? at + q * kUnit : p.weight, live);
    }
  }
}

// Bytes of one half of a unit of x in a stage, for a tile of tokens. A stage has no room for rows
// that are not there, unless they belong to a second tile.
template <class S>
__device__ __forceinline__ int InputBytes(const LinearParams& p) {
  const int rows = S::kTokenTiles == 1 ? p.m : kTokensOfMma;
  return rows * (kUnit / kPieceElements / 2) * kPieceBytes;
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
    if (token >= p.m) continue;
    const char* const at = p.x + token * p.x_stride + k * 2;
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const bool live = k + q * (kUnit / 2) < p.k;
      CopyAsync16OrZero(stage + S::kWeightBytes + (b * 2 + q) * InputBytes<S>(p),
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

  __device__ __forceinline__ void AddUnit(const LinearParams& p, uint32_t stage, int unit,
                                          const LaneNorm<S>& norm) {
    const int g = threadIdx.x % kWarpSize / 4;
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      uint4 x[S::kTokenTiles];
#pragma unroll
      for (int b = 0; b < S::kTokenTiles; ++b) {
        x[b] = make_uint4(0, 0, 0, 0);
        if (b * kTokensOfMma + g >= p.m) continue;
        x[b] = LoadShared16(stage + S::kWeightBytes + (b * 2 + q) * InputBytes<S>(p));
      }
      if constexpr (S::kNorm) norm.Apply(unit, q, x);
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

// From L2: this multiprocessor's L1 may hold what lay there before an earlier kernel wrote.
template <typename T>
__device__ __forceinline__ float LoadPastL1(const T* from) {
  return ToFloat(__ldcg(from));
}

// What `add` adds to the first element that this thread stores of a tile. Read before the tile's
// products, so that nobody waits for it behind them; past L1, like the inputs.
template <class S>
__device__ __forceinline__ float BeforeTile(const LinearParams& p, int tile) {
  using T = typename S::Element;
  const int i = static_cast<int>(threadIdx.x) % (p.team_warps * kWarpSize);
  const int token = i / S::kColumns, n = tile * S::kColumns + i - token * S::kColumns;
  if (!p.add || token >= p.m || n >= p.n) return 0.0f;
  return LoadPastL1(reinterpret_cast<const T*>(p.out + token * p.out_stride) + n);
}

// The sum of a weight row's products, over a team's warps in their order, biased and rounded as the
// product alone would be.
template <class S>
__device__ __forceinline__ float RowSum(const LinearParams& p, const float* sums, int row,
                                        int token, int bias) {
  using T = typename S::Element;
  float sum = 0.0f;
  for (int w = 0; w < p.team_warps; ++w) {
    sum += sums[(w * S::kRows + row) * S::kTokens + token];
  }
  if (p.bias != nullptr) sum += ToFloat(reinterpret_cast<const T*>(p.bias)[bias]);
  return Rounded<T>(sum);
}

// Stores a tile. Neighbouring threads take neighbouring rows of the weight, which are neighbours in
// out.
template <class S>
__device__ __forceinline__ void StoreTile(const LinearParams& p, int tile, const float* sums,
                                          float before) {
  using T = typename S::Element;
  const int threads = p.team_warps * kWarpSize;
  const int first = static_cast<int>(threadIdx.x) % threads;
  for (int i = first; i < S::kColumns * p.m; i += threads) {
    const int token = i / S::kColumns, column = i - token * S::kColumns;
    const int n = tile * S::kColumns + column;
    if (n >= p.n) continue;
    float value;
    if constexpr (S::kGated) {
      const int row = column / kGroupRows * (2 * kGroupRows) + column % kGroupRows;
      const float gate = RowSum<S>(p, sums, row, token, n);
      const float open = p.gate == Gate::kSilu ? Silu::Of(gate) : GeluTanh::Of(gate);
      value = Rounded<T>(open * RowSum<S>(p, sums, row + kGroupRows, token, p.n + n));
    } else {
      value = RowSum<S>(p, sums, column, token, n);
    }
    T* const out = reinterpret_cast<T*>(p.out + token * p.out_stride) + n;
    if (p.add) value += i == first ? before : LoadPastL1(out);
    Store(out, value);
  }
}

template <class S>
__global__ void __launch_bounds__(kMaxLinearWarps* kWarpSize, 1)
    LinearKernel(const __grid_constant__ LinearParams p) {
  unsigned char* const shared = DynamicShared();
  const Team team(p);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const uint32_t ring = SharedAddress(shared) + warp * p.ring_bytes + lane * kPieceBytes;
  float* const all_sums = reinterpret_cast<float*>(shared + p.warps * p.ring_bytes);
  float* const sums = all_sums + team.number * p.team_warps * S::kSumFloats;
  const NormMemory norm_memory(
      p, reinterpret_cast<unsigned char*>(all_sums + p.warps * S::kSumFloats));
  if (!p.weight_ready) GridDependencyWait();
  UnitWalk weights(p, team), inputs(p, team);
#pragma unroll 1
  for (int i = 0; i < S::kStages - 1 && weights.live(p); ++i, weights.Advance(p, team)) {
    IssueWeight<S>(p, weights, ring + i * p.stage_bytes);
  }
  if constexpr (S::kNorm) IssueNormWeight(p, norm_memory);
  if (p.weight_ready) GridDependencyWait();
  GridDependencyLaunch();
  // The first group holds all weights of the stages so far; they are waited for together.
#pragma unroll 1
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (inputs.live(p)) {
      IssueInputs<S>(p, inputs, ring + i * p.stage_bytes);
      inputs.Advance(p, team);
    }
    CopyAsyncCommit();
  }
  LaneNorm<S> norm;
  if constexpr (S::kNorm) {
    SumSquares<S>(p, norm_memory);
    CopyAsyncWait<S::kStages - 2>();  // the first group: the norm's weight is there
    __syncthreads();
    norm.Read(p, norm_memory);
  }
  LinearSums<S> acc;
  int write = S::kStages - 1, read = 0;
#pragma unroll 1
  for (int tile = team.first_tile; tile < p.tiles; tile += team.tile_step) {
    acc.Clear();
    const float before = BeforeTile<S>(p, tile);
#pragma unroll 1
    for (int unit = team.warp; unit < p.units; unit += p.team_warps) {
      if (weights.live(p)) {  // into the stage that was read in the turn before
        IssueWeight<S>(p, weights, ring + write * p.stage_bytes);
        IssueInputs<S>(p, weights, ring + write * p.stage_bytes);
        weights.Advance(p, team);
      }
      CopyAsyncCommit();  // also when empty: waiting counts groups
      write = write == S::kStages - 1 ? 0 : write + 1;
      CopyAsyncWait<S::kStages - 1>();
      acc.AddUnit(p, ring + read * p.stage_bytes, unit, norm);
      read = read == S::kStages - 1 ? 0 : read + 1;
    }
    acc.Leave(sums + team.warp * S::kSumFloats);
    team.Sync(p);
    StoreTile<S>(p, tile, sums, before);
    team.Sync(p);
  }
}

// One instantiation each, in linear_<kind>_<dtype>.cu.
template <typename T, LinearKind kKind>
Status LaunchLinearOf(const LinearChoice& choice, const LinearParams& p, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(choice.ctas);
  shape.threads = static_cast<unsigned>(p.warps * kWarpSize);
  shape.shared_bytes = choice.shared_bytes();
  shape.stream = stream;
  const auto launch = [&](auto groups) {
    constexpr int kGroups = decltype(groups)::value;
    return choice.token_tiles == 1
               ? LaunchDependent(LinearKernel<LinearShape<T, kGroups, 1, kKind>>, shape, p)
               : LaunchDependent(LinearKernel<LinearShape<T, kGroups, 2, kKind>>, shape, p);
  };
  if constexpr (!HasGate(kKind)) {
    if (choice.groups == 1) return launch(std::integral_constant<int, 1>{});
  }
  return choice.groups == 2 ? launch(std::integral_constant<int, 2>{})
                            : launch(std::integral_constant<int, 4>{});
}

}  // namespace octavo::cuda
