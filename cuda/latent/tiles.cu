// Latent attention on mma.sync: out = softmax(q K^T) V, a key a whole vector of the cache and its
// value the first C entries, so that one tile in shared memory serves both products.
//
// Shapes as LatentAttentionArgs; bfloat16 or float16; W up to 576, C up to 512, whole steps of 16.
// Grid: persistent. A tile is 64 packed queries of a row (token * heads + head), which all read the
// same keys; every CTA sums the rows' tiles up, as only the device knows them, and takes each
// gridDim-th. A row's keys are not split: a few long rows of few heads leave multiprocessors idle.
//
// Eight warps as four by two: a warp has 16 queries, and of them half of the keys' scores and half
// of the columns of C; weights go to the other half through shared memory. Shared memory: queries
// [64, W], two stages of keys [32, W], weights [64, 32], then statistics and the rows' tiles. Rows
// are padded by 16 bytes: an odd number of pieces, so that ldmatrix meets no bank twice.
//
// Bound by FLOPs from some 64 heads on, else by the bytes of the cache. Sources: DeepSeek-V2
// (2024), 2.1; FlashAttention-2 (arXiv 2307.08691).
#include "attention/params.h"
#include "common/element.cuh"
#include "common/ptx.cuh"
#include "common/scan.cuh"
#include "latent/latent.h"

namespace octavo::cuda {
namespace {

constexpr int kQueryWarps = 4;
constexpr int kHalves = 2;  // of keys in the scores, of columns in the sums
constexpr int kThreads = kQueryWarps * kHalves * kWarpSize;
constexpr int kQueries = kQueryWarps * 16;
constexpr int kKeys = 32;
constexpr int kPad = kPieceBytes;
constexpr int kWeightPitch = kKeys * 2 + kPad;
constexpr int kSumSteps = kMaxTileRank / kLatentStep / kHalves;  // pairs of column tiles of a warp

OCTAVO_HOST_DEVICE constexpr int Pitch(int width) { return width * 2 + kPad; }
OCTAVO_HOST_DEVICE constexpr int TileBytes(int width) {
  return (kQueries + 2 * kKeys) * Pitch(width) + kQueries * kWeightPitch;
}
constexpr int kStatBytes = kQueries * kHalves * 4;
static_assert(TileBytes(kMaxTileWidth) + kStatBytes + 4 * (kMaxTileRows + 1) <= 163 * 1024,
              "fits sm_80");

// Where things lie in shared memory.
struct Layout {
  uint32_t queries, keys;
  unsigned char* weights;
  float* stats;     // [kHalves][kQueries]
  int32_t* before;  // [rows + 1]: tiles
  int pitch, stage_bytes;

  __device__ __forceinline__ Layout(const LatentParams& p, unsigned char* shared) {
    pitch = Pitch(p.width);
    stage_bytes = kKeys * pitch;
    queries = SharedAddress(shared);
    keys = queries + kQueries * pitch;
    weights = shared + kQueries * pitch + 2 * stage_bytes;
    stats = reinterpret_cast<float*>(shared + TileBytes(p.width));
    before = reinterpret_cast<int32_t*>(stats + kHalves * kQueries);
  }
};

struct Tile {
  LatentParams::Row row;
  int first;     // packed query of the row
  int queries;   // of the tile
  int position;  // of the row's first token
  int keys;      // that any of the queries sees
};

__device__ __forceinline__ Tile TileAt(const LatentParams& p, const Layout& at, int number) {
  const int r = FindOwner(at.before, p.rows, number);
  Tile t;
  t.row = p.RowAt(r);
  t.first = (number - at.before[r]) * kQueries;
  t.queries = Min(kQueries, t.row.tokens * p.heads - t.first);
  t.position = t.row.length - t.row.tokens;
  t.keys = t.position + (t.first + t.queries - 1) / p.heads + 1;
  return t;
}

// Threads copy a row's pieces eight at a time.
constexpr int kRowLanes = 8;

__device__ __forceinline__ void LoadQueries(const LatentParams& p, const Layout& at,
                                            const Tile& t) {
  const int pieces = p.width * 2 / kPieceBytes;
  for (int i = threadIdx.x / kRowLanes; i < kQueries; i += kThreads / kRowLanes) {
    const bool live = i < t.queries;
    const int packed = t.first + (live ? i : 0), token = packed / p.heads;
    const char* const from = p.q + (t.row.first + token) * p.q_token_stride +
                             (packed - token * p.heads) * p.q_head_stride;
    for (int c = threadIdx.x % kRowLanes; c < pieces; c += kRowLanes) {
      CopyAsync16OrZero(at.queries + i * at.pitch + c * kPieceBytes, from + c * kPieceBytes, live);
    }
  }
}

// Slots past the row's keys may hold anything: they are zero here.
__device__ __forceinline__ void LoadKeys(const LatentParams& p, const Layout& at, const Tile& t,
                                         int tile) {
  const int pieces = p.width * 2 / kPieceBytes;
  const uint32_t stage = at.keys + tile % 2 * at.stage_bytes;
  for (int i = threadIdx.x / kRowLanes; i < kKeys; i += kThreads / kRowLanes) {
    const int key = tile * kKeys + i;
    const char* const from = key < t.keys ? p.VectorAt(t.row, key) : nullptr;
    const bool live = from != nullptr;
    for (int c = threadIdx.x % kRowLanes; c < pieces; c += kRowLanes) {
      CopyAsync16OrZero(stage + i * at.pitch + c * kPieceBytes,
                        live ? from + c * kPieceBytes : p.cache, live);
    }
  }
}

template <typename T>
struct TileState {
  float o[kSumSteps][2][4];
  float maximum[2];  // log2, of rows l / 4 and l / 4 + 8
  float sum[2];      // of the weights of this warp's half of the keys

  __device__ __forceinline__ void Clear() {
    maximum[0] = maximum[1] = kNoScore;
    sum[0] = sum[1] = 0.0f;
#pragma unroll
    for (int i = 0; i < kSumSteps * 8; ++i) o[i / 8][i / 4 % 2][i % 4] = 0.0f;
  }

  // Adds 32 keys. REQUIRES: they are in their stage, and nobody uses weights or statistics.
  __device__ __forceinline__ void AddKeys(const LatentParams& p, const Layout& at, const Tile& t,
                                          int tile) {
    const uint32_t stage = at.keys + tile % 2 * at.stage_bytes;
    float s[2][4] = {};
    Scores(p, at, stage, s);
    Mask(p, t, tile * kKeys, s);
    float high[2];
    LeaveMaxima(at, s, high);
    __syncthreads();
    Weigh(at, high, s);
    __syncthreads();
    AddValues(p, at, stage);
  }

  __device__ __forceinline__ void Store(const LatentParams& p, const Layout& at, const Tile& t) {
    const int lane = threadIdx.x % kWarpSize, row = Row();
    LeaveSums(at);
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = row + h * 8;
      if (i >= t.queries) continue;
      const float factor = 1.0f / (at.stats[i] + at.stats[kQueries + i]);
      const int packed = t.first + i, token = packed / p.heads;
      char* const out = p.out + (t.row.first + token) * p.out_token_stride +
                        (packed - token * p.heads) * p.out_head_stride + lane % 4 * 4;
#pragma unroll
      for (int d = 0; d < kSumSteps; ++d) {
        const int column = (Half() + d * kHalves) * kLatentStep;
        if (column >= p.rank) continue;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          *reinterpret_cast<uint32_t*>(out + (column + n * 8) * 2) =
              Pack<T>(o[d][n][2 * h] * factor, o[d][n][2 * h + 1] * factor);
        }
      }
    }
  }

 private:
  static __device__ __forceinline__ int Half() { return threadIdx.x / kWarpSize / kQueryWarps; }
  static __device__ __forceinline__ int QueryWarp() {
    return threadIdx.x / kWarpSize % kQueryWarps;
  }
  // This lane's first row of the tile.
  static __device__ __forceinline__ int Row() {
    return QueryWarp() * 16 + threadIdx.x % kWarpSize / 4;
  }

  // s[n]: 16 queries by keys 16 * half + 8 * n and on.
  static __device__ __forceinline__ void Scores(const LatentParams& p, const Layout& at,
                                                uint32_t stage, float (&s)[2][4]) {
    const int lane = threadIdx.x % kWarpSize;
    const uint32_t a_at =
        at.queries + (QueryWarp() * 16 + lane % 16) * at.pitch + lane / 16 * kPieceBytes;
    const int key = Half() * 16 + (lane & 7) + (lane >> 4) * 8;
    const uint32_t b_at = stage + key * at.pitch + ((lane >> 3) & 1) * kPieceBytes;
#pragma unroll 4
    for (int k = 0; k < p.width / kLatentStep; ++k) {
      uint32_t a[4], b[4];
      LoadMatrix4(a, a_at + k * 2 * kPieceBytes);
      LoadMatrix4(b, b_at + k * 2 * kPieceBytes);
      Mma16x8x16<T>(s[0], a, b[0], b[1]);
      Mma16x8x16<T>(s[1], a, b[2], b[3]);
    }
  }

  // Scores become log2 of weights; what a query does not see, -inf.
  static __device__ __forceinline__ void Mask(const LatentParams& p, const Tile& t, int first,
                                              float (&s)[2][4]) {
    const float scale = p.scale * kLog2E;
    const int key = first + Half() * 16 + threadIdx.x % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // Rows beyond the tile's queries are never stored: they may see what they like.
      const int packed = t.first + Min(Row() + h * 8, t.queries - 1);
      const int position = t.position + packed / p.heads;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = s[n][2 * h + i];
          x = key + n * 8 + i <= position ? x * scale : -INFINITY;
        }
      }
    }
  }

  static __device__ __forceinline__ void LeaveMaxima(const Layout& at, const float (&s)[2][4],
                                                     float (&high)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float x = fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]), fmaxf(s[1][2 * h], s[1][2 * h + 1]));
      x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
      x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
      high[h] = x;
      if (threadIdx.x % 4 == 0) at.stats[Half() * kQueries + Row() + h * 8] = x;
    }
  }

  // Raises the maxima to those of both halves, rescales the sums and leaves the weights.
  __device__ __forceinline__ void Weigh(const Layout& at, const float (&high)[2],
                                        const float (&s)[2][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = Row() + h * 8;
      const float other = at.stats[(1 - Half()) * kQueries + row];
      const float now = fmaxf(maximum[h], fmaxf(high[h], other));
      const float factor = Exp2(maximum[h] - now);
      maximum[h] = now;
      sum[h] *= factor;
#pragma unroll
      for (int d = 0; d < kSumSteps; ++d) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[d][i / 2][2 * h + i % 2] *= factor;
      }
      unsigned char* const to =
          at.weights + row * kWeightPitch + Half() * 2 * kPieceBytes + threadIdx.x % 4 * 4;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float w0 = Exp2(s[n][2 * h] - now), w1 = Exp2(s[n][2 * h + 1] - now);
        sum[h] += w0 + w1;
        *reinterpret_cast<uint32_t*>(to + n * kPieceBytes) = Pack<T>(w0, w1);
      }
    }
  }

  __device__ __forceinline__ void AddValues(const LatentParams& p, const Layout& at,
                                            uint32_t stage) {
    const int lane = threadIdx.x % kWarpSize;
    const uint32_t a_at = SharedAddress(at.weights) +
                          (QueryWarp() * 16 + lane % 16) * kWeightPitch + lane / 16 * kPieceBytes;
    const uint32_t b_at =
        stage + lane % 16 * at.pitch + lane / 16 * kPieceBytes + Half() * 2 * kPieceBytes;
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      uint32_t a[4];
      LoadMatrix4(a, a_at + k * 2 * kPieceBytes);
#pragma unroll
      for (int d = 0; d < kSumSteps; ++d) {
        if ((Half() + d * kHalves) * kLatentStep >= p.rank) continue;
        uint32_t b[4];
        LoadMatrix4Transposed(b, b_at + k * 16 * at.pitch + d * kHalves * 2 * kPieceBytes);
        Mma16x8x16<T>(o[d][0], a, b[0], b[1]);
        Mma16x8x16<T>(o[d][1], a, b[2], b[3]);
      }
    }
  }

  __device__ __forceinline__ void LeaveSums(const Layout& at) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float x = sum[h];
      x += __shfl_xor_sync(kFullWarp, x, 1);
      x += __shfl_xor_sync(kFullWarp, x, 2);
      if (threadIdx.x % 4 == 0) at.stats[Half() * kQueries + Row() + h * 8] = x;
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) TileKernel(const __grid_constant__ LatentParams p) {
  __shared__ int32_t scratch[kMaxScanWarps];
  GridDependencyWait();
  GridDependencyLaunch();
  const Layout at(p, DynamicShared());
  SumsBefore(at.before, p.rows, scratch,
             [&](int r) { return CeilDiv(p.RowAt(r).tokens * p.heads, kQueries); });
  const int tiles = at.before[p.rows];
  TileState<T> state;
#pragma unroll 1
  for (int number = blockIdx.x; number < tiles; number += gridDim.x) {
    const Tile t = TileAt(p, at, number);
    LoadQueries(p, at, t);
    LoadKeys(p, at, t, 0);
    CopyAsyncCommit();
    state.Clear();
    const int key_tiles = CeilDiv(t.keys, kKeys);
#pragma unroll 1
    for (int j = 0; j < key_tiles; ++j) {
      CopyAsyncWait<0>();
      __syncthreads();  // the keys are there for all, and nobody reads those before any more
      if (j + 1 < key_tiles) LoadKeys(p, at, t, j + 1);
      CopyAsyncCommit();
      state.AddKeys(p, at, t, j);
    }
    state.Store(p, at, t);
    __syncthreads();  // the next tile overwrites all of it
  }
}

}  // namespace

Status LaunchLatentTiles(DType dtype, const LatentParams& p, const DeviceFacts& facts,
                         cudaStream_t stream) {
  LaunchShape shape;
  // Each row's last tile may be one that it does not fill.
  const int64_t most = int64_t{p.tokens} * p.heads / kQueries + Min(p.rows, p.tokens);
  shape.grid = static_cast<unsigned>(Min<int64_t>(Max<int64_t>(most, 1), facts.multiprocessors));
  shape.threads = kThreads;
  shape.shared_bytes = TileBytes(p.width) + kStatBytes + 4 * (p.rows + 1);
  shape.stream = stream;
  return dtype == DType::kF16 ? LaunchDependent(TileKernel<__half>, shape, p)
                              : LaunchDependent(TileKernel<__nv_bfloat16>, shape, p);
}

}  // namespace octavo::cuda
