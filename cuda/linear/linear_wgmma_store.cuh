// How the wgmma product of some rows (linear_wgmma.cuh) is stored. A warpgroup has the sums of 64
// rows of the weight by the tile's tokens in registers, out has them the other way round: chunks of
// 32 tokens are rounded, turned by stmatrix into shared memory and stored 16 bytes a thread. A
// warpgroup waits for its own four warps only, once a chunk, and while it does the ring fills with
// the next tile.
//
// With a gate a thread has what opens and what is opened beside each other (the tensor map of the
// weight), so both are rounded and multiplied where they are. What `add` needs is asked for while
// the products still run.
#pragma once

#include <cstring>

#include "common/cluster.cuh"
#include "common/element.cuh"
#include "linear/linear_wgmma_norm.cuh"
#include "linear/linear_wgmma_ring.cuh"
#include "rows/activation.cuh"

namespace octavo::cuda {

inline constexpr int kPieceColumns = 8;  // of out, 16 bytes: what a thread stores at once
inline constexpr int kChunkGroups = kWideChunk / 8;
inline constexpr int kChunkSums = 4 * kChunkGroups;  // of a thread

// The tokens of a tile that a CTA stores, eight aside from the last ones.
struct WideTokens {
  int first, end;
};

// The warpgroup that asks. A constant where there is one, so that its barrier is one of few.
template <class S>
__device__ __forceinline__ int WarpgroupOf() {
  return S::kWarpgroups == 1 ? 0 : static_cast<int>(threadIdx.x) / kWarpgroupSize;
}

// What one thread of a warpgroup stores of a chunk of 64 rows of the weight: pieces of out, 16
// tokens apart.
template <class S>
class WidePieces {
 public:
  using T = typename S::Element;
  using Piece = ElementPack<T, kPieceColumns>;
  static constexpr int kMost = 2;  // of a chunk; one where a gate halves the columns

  __device__ __forceinline__ WidePieces(const WideParams& p, const WideWork<S>& work, bool gated)
      : p_(p), work_(work), gated_(gated) {
    const int thread = ThreadAfresh() % kWarpgroupSize;
    token_ = gated ? thread / 4 : thread / 8;
    piece_ = gated ? thread % 4 : thread % 8;
  }

  __device__ __forceinline__ int count() const { return gated_ ? 1 : kMost; }
  __device__ __forceinline__ int piece() const { return piece_; }
  // Of the row tile's first column of out.
  __device__ __forceinline__ int first_column(int row_tile) const {
    const int row = work_.row_tile * S::kRows + (WarpgroupOf<S>() * S::kRowTiles + row_tile) * 64;
    return gated_ ? row / 2 : row;
  }
  __device__ __forceinline__ int TokenOf(int i) const { return token_ + i * kWarpgroupSize / 8; }
  __device__ __forceinline__ int ColumnOf(int row_tile) const {
    return first_column(row_tile) + piece_ * kPieceColumns;
  }
  // The row of out, of piece i of the chunk that begins at this token.
  __device__ __forceinline__ int64_t RowOf(int chunk, int i) const {
    return work_.first_token(p_) + chunk + TokenOf(i);
  }
  // Where that piece is stored; null where that is outside.
  __device__ __forceinline__ T* At(int row_tile, int chunk, int end, int i) const {
    const int column = ColumnOf(row_tile);
    if (column >= p_.n || chunk + TokenOf(i) >= end) return nullptr;
    return reinterpret_cast<T*>(p_.out + RowOf(chunk, i) * p_.out_stride) + column;
  }
  // What out holds there, past L1: an earlier kernel on this multiprocessor may have left there
  // what it held before.
  __device__ __forceinline__ void Read(int row_tile, int chunk, int end,
                                       Piece (&was)[kMost]) const {
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const T* const from = i < count() ? At(row_tile, chunk, end, i) : nullptr;
      if (from == nullptr) continue;
      const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(from));
      memcpy(&was[i], &bits, sizeof(bits));
    }
  }

 private:
  const WideParams& p_;
  const WideWork<S>& work_;
  const bool gated_;
  int token_, piece_;
};

// What `add` adds. Chunk q of a tile is 64 rows q % kRowTiles of the 32 tokens from
// 32 * (q / kRowTiles) on. While the sums are there few chunks fit beside them; each that has been
// stored leaves registers for two.
template <class S>
class WideBefore {
 public:
  using T = typename S::Element;
  using Pieces = WidePieces<S>;

  // How many have been asked for when `stored` are stored.
  static OCTAVO_HOST_DEVICE constexpr int Asked(int stored) {
    return Min(S::kChunks, S::kChunksAhead + 2 * stored);
  }

  // Asks for chunks from <= q < to. REQUIRES: the kernel in front has ended.
  __device__ __forceinline__ void Ask(const Pieces& pieces, WideTokens tokens, int from, int to) {
#pragma unroll
    for (int q = 0; q < S::kChunks; ++q) {
      if (q < from || q >= to) continue;
      pieces.Read(q % S::kRowTiles, tokens.first + q / S::kRowTiles * kWideChunk, tokens.end,
                  was[q]);
    }
  }

  // Asks for what the next norm multiplies this thread's columns by.
  __device__ __forceinline__ void AskNorm(const Pieces& pieces, const WideParams& p) {
#pragma unroll
    for (int t = 0; t < S::kRowTiles; ++t) {
      const int column = pieces.ColumnOf(t);
      if (column < p.n)
        norm[t] = LoadPack<T, kPieceColumns>(reinterpret_cast<const T*>(p.norm) + column);
    }
  }

  typename Pieces::Piece was[S::kChunks][Pieces::kMost];
  typename Pieces::Piece norm[S::kRowTiles];  // where half of a norm is left
};

// One warpgroup's way from sums to out.
template <class S, bool kGated>
class WideStore {
 public:
  using T = typename S::Element;
  using Pieces = WidePieces<S>;

  __device__ __forceinline__ WideStore(const WideParams& p, const WideWork<S>& work,
                                       WideTokens tokens, uint32_t turned)
      : p_(p),
        pieces_(p, work, kGated),
        tokens_(tokens),
        turned_(turned + WarpgroupOf<S>() * kTurnedWarpgroup) {
    const int thread = ThreadAfresh();
    const int lane = thread % kWarpSize, matrix = lane / 8, token = lane % 8;
    const int warp = thread % kWarpgroupSize / kWarpSize;
    matrix_ = kGated ? PlaceOf(matrix * 8 + token, warp)
                     : PlaceOf(matrix / 2 * 8 + token, warp * 2 + matrix % 2);
#pragma unroll
    for (int t = 0; t < S::kRowTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) bias_[t][i] = BiasOf(t, warp, lane / 4, i);
    }
  }

  __device__ __forceinline__ const Pieces& pieces() const { return pieces_; }
  // The first token of chunk q, as WideBefore counts them.
  __device__ __forceinline__ int ChunkOf(int q) const {
    return tokens_.first + q / S::kRowTiles * kWideChunk;
  }
  // Whether it has tokens.
  __device__ __forceinline__ bool Has(int q) const { return ChunkOf(q) < tokens_.end; }

  // Stores chunk q. v[4 j + i] are sums of tokens 8 j + 2 (lane % 4) + i % 2 and row
  // lane / 4 + 8 (i / 2) of the warp's sixteen. *side is the half of shared memory that the chunk
  // before has left alone.
  __device__ __forceinline__ void Run(int q, const float (&v)[kChunkSums],
                                      const WideBefore<S>& before, uint32_t* side) const {
    const int row_tile = q % S::kRowTiles;
    const uint32_t turned = turned_ + *side;
    *side ^= kTurnedChunk;
    const float (&bias)[2] = bias_[row_tile];
    if constexpr (!kGated) {
#pragma unroll
      for (int pair = 0; pair < kChunkGroups; pair += 2) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = 4 * pair + 2 * i;
          words[i] = Pack<T>(v[at] + bias[i % 2], v[at + 1] + bias[i % 2]);
        }
        StoreMatrix4Transposed(turned + matrix_ + pair * 8 * kTurnedRow, words);
      }
    } else {
      uint32_t words[4];
      if (p_.gate == Gate::kSilu) {
        Open<Silu>(v, bias, words);
      } else {
        Open<GeluTanh>(v, bias, words);
      }
      StoreMatrix4Transposed(turned + matrix_, words);
    }
    SyncThreadsOf(1 + WarpgroupOf<S>(), kWarpgroupSize);
    Store(row_tile, ChunkOf(q), turned, before.was[q], before.norm[row_tile]);
  }

 private:
  static constexpr int kTurnedRow = 128;  // bytes of a token: 64 columns
  static constexpr int kTurnedChunk = kWideChunk * kTurnedRow;
  static constexpr int kTurnedWarpgroup = 2 * kTurnedChunk;
  static_assert(S::kWarpgroups * kTurnedWarpgroup == S::kTurnedBytes);

  // Where a piece of a chunk lies: so that neither the eight tokens of a matrix nor the pieces that
  // are stored together meet in a bank. With a gate two tokens share a row.
  static __device__ __forceinline__ int PlaceOf(int token, int piece) {
    if constexpr (kGated) {
      return token / 2 * kTurnedRow + ((token % 2 * 4 + piece) ^ (token / 2 % 4)) * kPieceBytes;
    } else {
      return token * kTurnedRow + (piece ^ (token % 8)) * kPieceBytes;
    }
  }

  // What is added to the first eight or the second eight rows of a warp: nothing is -0.
  __device__ __forceinline__ float BiasOf(int row_tile, int warp, int row, int half) const {
    if (p_.bias == nullptr) return -0.0f;
    const int first = pieces_.first_column(row_tile);
    const int column = kGated ? first + warp * 8 + row : first + warp * 16 + half * 8 + row;
    if (column >= p_.n) return 0.0f;
    return ToFloat(reinterpret_cast<const T*>(p_.bias)[kGated ? half * p_.n + column : column]);
  }

  // Both products are rounded as they would be stored alone.
  template <class Opening>
  __device__ __forceinline__ void Open(const float (&v)[kChunkSums], const float (&bias)[2],
                                       uint32_t (&words)[kChunkGroups]) const {
#pragma unroll
    for (int j = 0; j < kChunkGroups; ++j) {
      const uint32_t gates = Pack<T>(v[4 * j] + bias[0], v[4 * j + 1] + bias[0]);
      const uint32_t ups = Pack<T>(v[4 * j + 2] + bias[1], v[4 * j + 3] + bias[1]);
      float opened[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        opened[i] = Opening::Of(WordElement<T>(gates, i)) * WordElement<T>(ups, i);
      }
      words[j] = Pack<T>(opened[0], opened[1]);
    }
  }

  __device__ __forceinline__ void Store(int row_tile, int chunk, uint32_t turned,
                                        const typename Pieces::Piece (&was)[Pieces::kMost],
                                        const typename Pieces::Piece& norm) const {
#pragma unroll
    for (int i = 0; i < (kGated ? 1 : Pieces::kMost); ++i) {
      T* const to = pieces_.At(row_tile, chunk, tokens_.end, i);
      typename Pieces::Piece piece{};
      if (to != nullptr) {
        piece.words = LoadShared16(turned + PlaceOf(pieces_.TokenOf(i), pieces_.piece()));
        if (p_.add) {
          float value[kPieceColumns], old[kPieceColumns];
          ToFloats(piece, value);
          ToFloats(was[i], old);
#pragma unroll
          for (int c = 0; c < kPieceColumns; ++c) value[c] += old[c];
          piece = PackOf<T>(value);
        }
        StorePack(to, piece);
      }
      if constexpr (S::kHalfNorms && !kGated) {
        if (p_.scaled != nullptr) Leave(row_tile, pieces_.RowOf(chunk, i), to, piece, norm);
      }
    }
  }

  static_assert(kSquaresColumns == 64, "those of a row tile");

  // Half of the next norm of a piece of out. The threads of a token's 64 columns are neighbours,
  // and those outside have zeros.
  __device__ __forceinline__ void Leave(int row_tile, int64_t row, const T* to,
                                        const typename Pieces::Piece& piece,
                                        const typename Pieces::Piece& norm) const {
    float value[kPieceColumns];
    ToFloats(piece, value);
    float sum = AddSquares(0.0f, value);
#pragma unroll
    for (int step = 1; step < kSquaresColumns / kPieceColumns; step *= 2) {
      sum += __shfl_xor_sync(kFullWarp, sum, step);
    }
    if (to == nullptr) return;
    StorePack(reinterpret_cast<T*>(p_.scaled + row * p_.scaled_stride) + pieces_.ColumnOf(row_tile),
              ScalePiece(value, norm, p_.norm_offset));
    if (pieces_.piece() > 0) return;
    p_.left[row * p_.left_stride + pieces_.first_column(row_tile) / kSquaresColumns] = sum;
  }

  const WideParams& p_;
  const Pieces pieces_;
  const WideTokens tokens_;
  const uint32_t turned_;
  int matrix_;
  float bias_[S::kRowTiles][2];
};

}  // namespace octavo::cuda
