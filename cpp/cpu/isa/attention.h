// Attention of one tile: packed query rows (tokens x the query heads of one KV head) against blocks
// of kKeyBlock keys with a running softmax, all in float32. Two ways to the scores, by the number
// of rows:
//   few rows (decode): keys are read where they lie, once for four heads at a time; dot products
//   along the head dim; many rows (prefill): the key block is transposed into scratch, scores are a
//   small matrix product.
// Values are accumulated by the same small matrix product in both. Decode is bounded by reading the
// cache, prefill by 4 * rows * keys * head_dim FLOP. (Online softmax: Milakov and Gimelshein 2018;
// tiling: FlashAttention, Dao 2022.)
#pragma once

#include "cpu/isa/e4m3.h"

namespace octavo::cpu::OCTAVO_CPU_ISA {

// Up to this many rows dot products win: transposing a key costs as much as about 8 rows of
// horizontal sums.
inline constexpr int kDotRows = 8;
inline constexpr int64_t kMaxHeadDim = 1024;  // of the one wide head of latent attention
// Key rows fetched ahead between two groups of rows of the matrix product.
inline constexpr int64_t kAheadRows = 6;
// Rows x vectors of the register tile of the matrix product: 6 x 4 accumulators of 32 registers, 6
// x 2 of 16.
inline constexpr int kTileM = 6;
inline constexpr int kTileN = OCTAVO_CPU_REGISTERS >= 32 ? 4 : 2;

OCTAVO_INLINE int64_t RoundUp(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
OCTAVO_INLINE int64_t LowerOf(int64_t a, int64_t b) { return a < b ? a : b; }
OCTAVO_INLINE int64_t HigherOf(int64_t a, int64_t b) { return a > b ? a : b; }

// Fetches the next key block into L2 while this one is worked on, a few rows at a time: a head's
// run of keys ends with its block, before the hardware's own prefetch gets going.
struct Prefetcher {
  const char* const* keys = nullptr;
  const char* const* values = nullptr;  // null: they lie in the keys
  int64_t count = 0;
  int64_t row_bytes = 0;
  int64_t done = 0;

  OCTAVO_INLINE void Rows(int64_t n) {
    constexpr int64_t kLine = 64;
    const int64_t end = LowerOf(done + n, count);
    for (; done < end; ++done) {
      for (int64_t b = 0; b < row_bytes; b += kLine) {
        __builtin_prefetch(keys[done] + b, 0, 2);
        if (values != nullptr) __builtin_prefetch(values[done] + b, 0, 2);
      }
    }
  }
};

// c[m][0..N*kLanes) = alpha[m] * c[m] + sum over k of a[m][k] * b[k][...], for M rows. Null alpha:
// c starts at 0.
template <int M, int N, typename T>
OCTAVO_INLINE void MultiplyTile(const float* a, int64_t a_stride, const T* const* b,
                                int64_t b_offset, int64_t depth, float* c, int64_t c_stride,
                                const float* alpha) {
  VecF acc[M][N];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      acc[m][n] = alpha == nullptr ? VecF{} : Load(c + m * c_stride + n * kLanes) * alpha[m];
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    const T* row = b[k] + b_offset;
    VecF v[N];
    for (int n = 0; n < N; ++n) v[n] = Load(row + n * kLanes);
    for (int m = 0; m < M; ++m) {
      const VecF s = Set(a[m * a_stride + k]);
      for (int n = 0; n < N; ++n) acc[m][n] = Fma(s, v[n], acc[m][n]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) Store(c + m * c_stride + n * kLanes, acc[m][n]);
  }
}

template <int M, typename T>
void MultiplyRows(const float* a, int64_t a_stride, const T* const* b, int64_t depth, float* c,
                  int64_t c_stride, int64_t columns, const float* alpha) {
  int64_t n = 0;
  for (; n + kTileN * kLanes <= columns; n += kTileN * kLanes) {
    MultiplyTile<M, kTileN>(a, a_stride, b, n, depth, c + n, c_stride, alpha);
  }
  for (; n + 2 * kLanes <= columns; n += 2 * kLanes) {
    MultiplyTile<M, 2>(a, a_stride, b, n, depth, c + n, c_stride, alpha);
  }
  for (; n < columns; n += kLanes) {
    MultiplyTile<M, 1>(a, a_stride, b, n, depth, c + n, c_stride, alpha);
  }
}

// c = alpha * c + a * b: a is [rows, depth], row k of b is b[k], columns is a multiple of kLanes.
template <typename T>
void Multiply(const float* a, int64_t a_stride, int64_t rows, const T* const* b, int64_t depth,
              float* c, int64_t c_stride, int64_t columns, const float* alpha, Prefetcher* ahead) {
  // Even groups of rows: 8 rows are 4 + 4, not 6 + 2.
  const int64_t groups = (rows + kTileM - 1) / kTileM;
  for (int64_t g = 0, m = 0; g < groups; ++g) {
    const int64_t take = (rows - m + (groups - g) - 1) / (groups - g);
    ahead->Rows(kAheadRows);
    const float* am = a + m * a_stride;
    float* cm = c + m * c_stride;
    const float* scale = alpha == nullptr ? nullptr : alpha + m;
    switch (take) {
      case 1:
        MultiplyRows<1>(am, a_stride, b, depth, cm, c_stride, columns, scale);
        break;
      case 2:
        MultiplyRows<2>(am, a_stride, b, depth, cm, c_stride, columns, scale);
        break;
      case 3:
        MultiplyRows<3>(am, a_stride, b, depth, cm, c_stride, columns, scale);
        break;
      case 4:
        MultiplyRows<4>(am, a_stride, b, depth, cm, c_stride, columns, scale);
        break;
      case 5:
        MultiplyRows<5>(am, a_stride, b, depth, cm, c_stride, columns, scale);
        break;
      default:
        MultiplyRows<6>(am, a_stride, b, depth, cm, c_stride, columns, scale);
        break;
    }
    m += take;
  }
}

// scores[h][j] = q[h] . keys[j] for Heads rows of q and every key; keys is padded to a multiple of
// kLanes pointers.
template <int Heads, typename T>
OCTAVO_INLINE void DotKeys(const float* q, int64_t q_stride, const T* const* keys, int64_t dim,
                           float* scores) {
  constexpr int kKeys = kLanes / Heads;
  VecF acc[kLanes] = {};
  for (int64_t d = 0; d < dim; d += kLanes) {
    VecF query[Heads];
    for (int h = 0; h < Heads; ++h) query[h] = Load(q + h * q_stride + d);
    for (int j = 0; j < kKeys; ++j) {
      const VecF key = Load(keys[j] + d);
      for (int h = 0; h < Heads; ++h) acc[h * kKeys + j] = Fma(query[h], key, acc[h * kKeys + j]);
    }
  }
  float sums[kLanes];
  Store(sums, SumEach(acc));
  for (int h = 0; h < Heads; ++h) {
    for (int j = 0; j < kKeys; ++j) scores[h * kKeyBlock + j] = sums[h * kKeys + j];
  }
}

// Scores of up to kDotRows rows; q has its rows padded with zeros to a multiple of four (to two, to
// one for fewer).
template <typename T>
void DotScores(const float* q, int64_t q_stride, int rows, const T* const* keys, int64_t count,
               int64_t dim, float* scores, Prefetcher* ahead) {
  const int heads = rows == 1 ? 1 : rows == 2 ? 2 : 4;
  for (int64_t j = 0; j < count; j += kLanes / heads) {
    ahead->Rows(kLanes / heads);
    if (heads == 1) {
      DotKeys<1>(q, q_stride, keys + j, dim, scores + j);
    } else if (heads == 2) {
      DotKeys<2>(q, q_stride, keys + j, dim, scores + j);
    } else {
      for (int h = 0; h < rows; h += 4) {
        DotKeys<4>(q + h * q_stride, q_stride, keys + j, dim, scores + h * kKeyBlock + j);
      }
    }
  }
}

// out[d][j] = rows[j][d]; the columns from `count` to kKeyBlock become 0. `rows` has kKeyBlock
// entries.
template <typename T>
void TransposeKeys(const T* const* rows, int64_t count, int64_t dim, float* out) {
  for (int64_t j = 0; j < kKeyBlock; j += kLanes) {
    for (int64_t d = 0; d < dim; d += kLanes) {
      VecF v[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        v[i] = j + i < count ? Load(rows[j + i] + d) : VecF{};
      }
      Transpose(v);
      for (int i = 0; i < kLanes; ++i) Store(out + (d + i) * kKeyBlock + j, v[i]);
    }
  }
}

// Copies rows as float32, padded with zeros to a multiple of kRowAlign, and points `rows` at the
// copies.
template <typename T>
void StageRows(const T* const* rows, int64_t count, int64_t dim, float* out, const float** staged) {
  const int64_t stride = RoundUp(dim, kRowAlign);
  for (int64_t j = 0; j < count; ++j) {
    float* line = out + j * stride;
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) Store(line + d, Load(rows[j] + d));
    if (d < dim) {
      Store(line + d, LoadPart(rows[j] + d, dim - d));
      d += kLanes;
    }
    for (; d < stride; d += kLanes) Store(line + d, VecF{});
    staged[j] = line;
  }
}

// Scratch of one tile, carved from one piece.
struct TileScratch {
  int64_t padded_rows;  // rows, padded for the dot products and for vectors over rows
  int64_t stride;       // head dim, padded
  float* q;             // [padded_rows, stride]
  float* scores;        // [padded_rows, kKeyBlock]
  float* alpha;         // [padded_rows]
  float* keys;          // [stride, kKeyBlock] transposed, or [kKeyBlock, stride]
  float* values;        // [kKeyBlock, stride]

  static int64_t Size(int rows, int head_dim) {
    const int64_t m = RoundUp(rows, kRowAlign), d = RoundUp(head_dim, kRowAlign);
    return m * d + m * kKeyBlock + m + 2 * d * kKeyBlock;
  }

  TileScratch(int rows, int head_dim, float* p)
      : padded_rows(RoundUp(rows, kRowAlign)), stride(RoundUp(head_dim, kRowAlign)) {
    q = p;
    scores = q + padded_rows * stride;
    alpha = scores + padded_rows * kKeyBlock;
    keys = alpha + padded_rows;
    values = keys + stride * kKeyBlock;
  }
};

template <typename T>
void StageQueriesOf(const AttentionTile& t, const TileScratch& s) {
  const float scale = t.soft_cap > 0.0f ? t.scale / t.soft_cap : t.scale;
  const int64_t rows = static_cast<int64_t>(t.tokens) * t.group;
  for (int64_t m = 0; m < s.padded_rows; ++m) {
    float* line = s.q + m * s.stride;
    const T* q =
        static_cast<const T*>(t.q) + m / t.group * t.q_token_stride + m % t.group * t.q_head_stride;
    for (int64_t d = 0; d < s.stride; d += kLanes) {
      VecF v{};
      if (m < rows && d < t.head_dim) {
        v = d + kLanes <= t.head_dim ? Load(q + d) : LoadPart(q + d, t.head_dim - d);
      }
      Store(line + d, v * scale);
    }
  }
}

// The tile's queries as float32, the scale folded in (and 1 / soft_cap: the scores then go straight
// into tanh).
void StageQueries(const AttentionTile& t, const TileScratch& s) {
  WithStorageType(t.dtype, [&]<typename T>(T*) { StageQueriesOf<T>(t, s); });
}

// Turns the scores of one key block into weights exp(score - largest), zero where a row may not
// look, and updates the rows' largest score and sum. alpha = what the row's earlier sums must be
// multiplied by.
OCTAVO_INLINE void SoftmaxBlock(const AttentionTile& t, const TileScratch& s, int64_t rows,
                                int64_t first_key, int64_t count, AttentionState state) {
  constexpr int kVectors = kKeyBlock / kLanes;
  for (int64_t m = 0; m < rows; ++m) {
    float* line = s.scores + m * kKeyBlock;
    const int64_t position = t.first_position + m / t.group;
    const int64_t end = LowerOf(count, position + 1 - first_key);
    const int64_t sees = t.chunked ? position - position % t.window : position - t.window + 1;
    const int64_t begin = t.window > 0 ? HigherOf(0, sees - first_key) : 0;
    const bool edge = begin > 0 || end < kKeyBlock;
    VecF v[kVectors];
    VecF top = Set(-kInfinity);
    for (int i = 0; i < kVectors; ++i) {
      v[i] = Load(line + i * kLanes);
      if (t.soft_cap > 0.0f) v[i] = Tanh(v[i]) * t.soft_cap;
      if (edge) {
        const VecI column = LaneIndex() + i * kLanes;
        const VecI visible = (column >= SetI(static_cast<int32_t>(begin))) &
                             (column < SetI(static_cast<int32_t>(end)));
        v[i] = visible ? v[i] : Set(-kInfinity);
      }
      top = Max(v[i], top);
    }
    const float before = state.largest[m];
    const float block_top = LargestLane(top);
    const float now = block_top > before ? block_top : before;
    // A row that has seen nothing yet subtracts 0: exp(-inf) is 0, exp(-inf + inf) would be NaN.
    const float base = now == -kInfinity ? 0.0f : now;
    VecF sum{};
    for (int i = 0; i < kVectors; ++i) {
      v[i] = Exp(v[i] - base);
      sum = sum + v[i];
      Store(line + i * kLanes, v[i]);
    }
    const float alpha = Exp(Set(before - base))[0];
    s.alpha[m] = alpha;
    state.largest[m] = now;
    state.sum[m] = state.sum[m] * alpha + Sum(sum);
  }
}

// Where the keys and values of one key block lie.
template <typename T>
struct KeyBlock {
  const T* keys[kKeyBlock];
  const T* values[kKeyBlock];
  int64_t count = 0;

  // The block of keys from `first` on, of which those in [begin, end) are read. What lies before
  // repeats the first of them, the padding behind repeats the last: rows that see neither mask
  // them. REQUIRES: first <= begin < end, begin - first < kKeyBlock.
  void Locate(const AttentionTile& t, int64_t first, int64_t begin, int64_t end) {
    count = LowerOf(kKeyBlock, end - first);
    const int64_t lead = begin - first;
    int64_t entry = begin / t.block_size, token = begin % t.block_size;
    const T* key = nullptr;
    for (int64_t j = lead; j < count; ++j) {
      if (token == t.block_size) {
        token = 0;
        ++entry;
      }
      if (j == lead || token == 0) {
        key = static_cast<const T*>(t.cache) + t.table[entry] * t.block_stride +
              token * t.token_stride;
      }
      keys[j] = key;
      values[j] = key + t.kv_stride;
      key += t.token_stride;
      ++token;
    }
    for (int64_t j = 0; j < lead; ++j) {
      keys[j] = keys[lead];
      values[j] = values[lead];
    }
    for (int64_t j = count; j < kKeyBlock; ++j) {
      keys[j] = keys[count - 1];
      values[j] = values[count - 1];
    }
  }
};

// The scores of one key block, into s.scores.
template <typename T>
void BlockScores(const AttentionTile& t, const TileScratch& s, int64_t rows, const KeyBlock<T>& b,
                 bool whole, Prefetcher* ahead) {
  if (rows <= kDotRows && whole) {
    DotScores(s.q, s.stride, static_cast<int>(rows), b.keys, b.count, t.head_dim, s.scores, ahead);
    return;
  }
  const float* staged[kMaxHeadDim];
  static_assert(kKeyBlock <= kMaxHeadDim);
  if (whole && t.invariant) {
    // The sums of few rows; keys that many rows read are widened once.
    StageRows(b.keys, kKeyBlock, t.head_dim, s.keys, staged);
    DotScores(s.q, s.stride, static_cast<int>(rows), staged, b.count, t.head_dim, s.scores, ahead);
    return;
  }
  if (whole) {
    TransposeKeys(b.keys, b.count, t.head_dim, s.keys);
  } else {
    StageRows(b.keys, kKeyBlock, t.head_dim, s.values, staged);
    TransposeKeys(staged, b.count, s.stride, s.keys);
  }
  for (int64_t d = 0; d < t.head_dim; ++d) staged[d] = s.keys + d * kKeyBlock;
  Multiply(s.q, s.stride, rows, staged, t.head_dim, s.scores, kKeyBlock, kKeyBlock, nullptr, ahead);
}

// state.o = alpha * state.o + weights * values.
template <typename T>
void BlockValues(const AttentionTile& t, const TileScratch& s, int64_t rows, const KeyBlock<T>& b,
                 bool whole, AttentionState state, Prefetcher* ahead) {
  const int64_t stride = RoundUp(t.value_dim, kRowAlign);
  if (whole && (sizeof(T) == sizeof(float) || rows <= kDotRows)) {
    Multiply(s.scores, kKeyBlock, rows, b.values, b.count, state.o, stride, t.value_dim, s.alpha,
             ahead);
    return;
  }
  const float* staged[kKeyBlock];
  StageRows(b.values, b.count, t.value_dim, s.values, staged);
  Multiply(s.scores, kKeyBlock, rows, staged, b.count, state.o, stride, stride, s.alpha, ahead);
}

// T: what the cache holds.
template <typename T>
void AttendKeys(const AttentionTile& t, int64_t key_begin, int64_t key_end, AttentionState state,
                float* scratch) {
  const int64_t rows = static_cast<int64_t>(t.tokens) * t.group;
  const TileScratch s(static_cast<int>(rows), t.head_dim, scratch);
  StageQueries(t, s);
  for (int64_t m = 0; m < rows; ++m) {
    state.largest[m] = -kInfinity;
    state.sum[m] = 0.0f;
  }
  const int64_t sums = rows * RoundUp(t.value_dim, kRowAlign);
  for (int64_t i = 0; i < sums; i += kLanes) Store(state.o + i, VecF{});

  // Rows of the cache are whole vectors.
  const bool whole = t.head_dim % kLanes == 0 && t.value_dim % kLanes == 0;
  // Blocks at multiples of their size are the same for every query that sees them.
  const int64_t first = t.invariant ? key_begin / kKeyBlock * kKeyBlock : key_begin;
  KeyBlock<T> blocks[2];
  blocks[0].Locate(t, first, key_begin, key_end);
  int now = 0;
  for (int64_t k0 = first; k0 < key_end; k0 += kKeyBlock, now ^= 1) {
    Prefetcher ahead;
    if (k0 + kKeyBlock < key_end) {
      KeyBlock<T>& next = blocks[now ^ 1];
      next.Locate(t, k0 + kKeyBlock, k0 + kKeyBlock, key_end);
      ahead.keys = reinterpret_cast<const char* const*>(next.keys);
      if (t.kv_stride != 0) ahead.values = reinterpret_cast<const char* const*>(next.values);
      ahead.count = next.count;
      ahead.row_bytes = t.head_dim * static_cast<int64_t>(sizeof(T));
    }
    BlockScores(t, s, rows, blocks[now], whole, &ahead);
    SoftmaxBlock(t, s, rows, k0, blocks[now].count, state);
    BlockValues(t, s, rows, blocks[now], whole, state, &ahead);
  }
}

void Attend(const AttentionTile& t, int64_t key_begin, int64_t key_end, AttentionState state,
            float* scratch) {
  if (t.cache_dtype == DType::kF8E4M3) {
    AttendKeys<F8>(t, key_begin, key_end, state, scratch);
    return;
  }
  WithStorageType(t.cache_dtype,
                  [&]<typename T>(T*) { AttendKeys<T>(t, key_begin, key_end, state, scratch); });
}

int64_t AttendScratch(int rows, int head_dim) { return TileScratch::Size(rows, head_dim); }

void AttendMerge(int rows, int value_dim, AttentionState state, AttentionState other) {
  const int64_t stride = RoundUp(value_dim, kRowAlign);
  for (int64_t m = 0; m < rows; ++m) {
    const float a = state.largest[m], b = other.largest[m];
    const float top = a > b ? a : b;
    if (top == -kInfinity) continue;
    const float wa = Exp(Set(a - top))[0], wb = Exp(Set(b - top))[0];
    state.largest[m] = top;
    state.sum[m] = state.sum[m] * wa + other.sum[m] * wb;
    float* o = state.o + m * stride;
    for (int64_t d = 0; d < stride; d += kLanes) {
      Store(o + d, Fma(Load(other.o + m * stride + d), Set(wb), Load(o + d) * wa));
    }
  }
}

template <typename T>
void FinishRows(const AttentionTile& t, AttentionState state) {
  const int64_t stride = RoundUp(t.value_dim, kRowAlign);
  const int64_t rows = static_cast<int64_t>(t.tokens) * t.group;
  for (int64_t m = 0; m < rows; ++m) {
    float scale = 1.0f;
    float sum = state.sum[m];
    if (t.sinks != nullptr) {
      const float sink = t.sinks[m % t.group], largest = state.largest[m];
      const float top = sink > largest ? sink : largest;
      scale = Exp(Set(largest - top))[0];
      sum = sum * scale + Exp(Set(sink - top))[0];
    }
    const float* o = state.o + m * stride;
    T* out =
        static_cast<T*>(t.out) + m / t.group * t.out_token_stride + m % t.group * t.out_head_stride;
    const float factor = t.value_scale * scale / sum;
    int64_t d = 0;
    for (; d + kLanes <= t.value_dim; d += kLanes) Store(out + d, Load(o + d) * factor);
    if (d < t.value_dim) StorePart(out + d, Load(o + d) * factor, t.value_dim - d);
  }
}

void AttendFinish(const AttentionTile& t, AttentionState state) {
  WithStorageType(t.dtype, [&]<typename T>(T*) { FinishRows<T>(t, state); });
}

}  // namespace octavo::cpu::OCTAVO_CPU_ISA
