// The inner loops of the CPU ops, as a table of functions per instruction set. Ops pick the table
// once per call; each function handles one row, tile or chunk and is called from any thread.
// Nothing here checks anything: the ops did.
#pragma once

#include <cstdint>

#include "octavo/dtype.h"

namespace octavo::cpu {

// The key block of attention: scores of this many keys are in flight at a time.
inline constexpr int kKeyBlock = 64;
// The largest number of packed query rows (tokens x heads of one KV head) of an attention tile,
// unless one token has more.
inline constexpr int kTileRows = 64;
// Tokens' weights are summed in chunks of this many, so that a draw only walks one chunk.
inline constexpr int kSumChunk = 256;

// One tile of attention: the queries of `tokens` neighbouring tokens for the `group` query heads of
// one KV head.
struct AttentionTile {
  DType dtype = DType::kF32;        // of queries and output
  DType cache_dtype = DType::kF32;  // the same, or e4m3
  int head_dim = 0;
  int value_dim = 0;  // of a value and an output row, <= head_dim
  // Queries and output, at the tile's first token and the group's first head. Strides in elements.
  const void* q = nullptr;
  void* out = nullptr;
  int64_t q_token_stride = 0;
  int64_t q_head_stride = 0;
  int64_t out_token_stride = 0;
  int64_t out_head_stride = 0;
  int tokens = 0;
  int group = 0;
  int64_t first_position = 0;
  // The cache at this KV head's K of block 0, token 0; V lies kv_stride elements further.
  const void* cache = nullptr;
  int64_t block_stride = 0;
  int64_t kv_stride = 0;
  int64_t token_stride = 0;
  int64_t block_size = 0;
  const int32_t* table = nullptr;  // the row's line of the block table
  float scale = 1.0f;              // of the product of a query and what the cache holds of a key
  float value_scale = 1.0f;        // of what the cache holds of a value
  float soft_cap = 0.0f;
  int64_t window = 0;
  bool chunked = false;          // the window is the chunk of so many keys that the query stands in
  bool invariant = false;        // a query's sums do not depend on the other queries
  const float* sinks = nullptr;  // of the group's heads, or null
};

// What attention over some keys has found for a tile's rows: the largest score, the sum of
// exp(score - largest), and the sum of exp(score - largest) * value. Row stride of `o` is the value
// dim rounded up to kRowAlign.
struct AttentionState {
  float* largest = nullptr;
  float* sum = nullptr;
  float* o = nullptr;
};
inline constexpr int kRowAlign = 16;

// Rows of x times the transposed weight. Strides in elements.
struct LinearRowsArgs {
  DType dtype = DType::kF32;
  void* out = nullptr;
  int64_t out_stride = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* weight = nullptr;
  int64_t weight_stride = 0;
  const void* bias = nullptr;  // or null
  int64_t inputs = 0;          // rows of x
  int64_t columns = 0;         // of x and of the weight
};
// Blocks of many rows of x hold a multiple of so many, the last one too, by rows of zeros.
inline constexpr int kGemmStep = 6;

// One row of a causal convolution; `before` and `after` are its states, taps - 1 inputs each.
// Strides in elements.
struct ConvRow {
  DType dtype = DType::kF32;
  void* out = nullptr;
  int64_t out_stride = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* weight = nullptr;
  int64_t weight_stride = 0;
  const void* bias = nullptr;    // or null
  const void* before = nullptr;  // null: zeros
  void* after = nullptr;         // may be `before`
  int64_t state_stride = 0;
  int64_t tokens = 0;
  int64_t taps = 0;
};
inline constexpr int kMaxConvTaps = 8;

// One head of one row of Mamba2's scan. The states are dense [state_size, head_dim]. Strides in
// elements, from one token to the next.
struct ScanHead {
  DType dtype = DType::kF32;
  void* out = nullptr;
  int64_t out_stride = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* dt = nullptr;
  int64_t dt_stride = 0;
  const void* b = nullptr;
  int64_t b_stride = 0;
  const void* c = nullptr;
  int64_t c_stride = 0;
  const void* a_log = nullptr;  // of this head, like the next two
  const void* dt_bias = nullptr;
  const void* skip = nullptr;
  const float* before = nullptr;  // null: zeros
  float* after = nullptr;         // may be `before`
  int64_t tokens = 0;
  int64_t head_dim = 0;
  int64_t state_size = 0;
};
inline constexpr int kMaxScanState = 1024;

struct Kernels {
  const char* name;

  void (*rms_norm)(DType, void* out, const void* x, const void* weight, int64_t n, float eps,
                   float weight_offset);
  void (*add_rms_norm)(DType, void* out, const void* x, void* residual, const void* weight,
                       int64_t n, float eps, float weight_offset);
  // to += x, rounded.
  void (*add)(DType, void* to, const void* x, int64_t n);
  // The same numbers in float32.
  void (*widen)(DType, float* out, const void* x, int64_t n);
  // `heads` vectors, head_stride apart, rotated by the same `half` angles.
  void (*rope)(DType, void* x, int64_t heads, int64_t head_stride, const float* cos,
               const float* sin, int64_t half, bool interleaved);
  // out[i] = x[i] / scale in e4m3, rounded to nearest and held within +-448; NaN stays NaN.
  void (*quantize)(DType, void* out, const void* x, int64_t n, float scale);
  void (*silu_mul)(DType, void* out, const void* gate, const void* up, int64_t n);
  void (*gelu_tanh_mul)(DType, void* out, const void* gate, const void* up, int64_t n);
  void (*clamped_swiglu)(DType, void* out, const void* gate, const void* up, int64_t n, float alpha,
                         float limit);
  // out[i] = the sum of weights[j] * rows[place[j] * stride + i] over k, in order.
  void (*weighted_sum)(DType, void* out, const void* rows, int64_t stride, const int32_t* place,
                       const float* weights, int64_t k, int64_t n);

  // Columns [begin, end) of the output: the products with these rows of the weight.
  void (*linear_rows)(const LinearRowsArgs&, int64_t begin, int64_t end);

  // The same bits, faster where rows are many. Floats of scratch, then the block.
  int64_t (*gemm_scratch)(int64_t inputs, int64_t columns);
  void (*gemm_block)(const LinearRowsArgs&, int64_t begin, int64_t end, float* scratch);
  void (*soft_cap)(DType, void* x, int64_t n, float cap);

  // Channels [begin, end) of a row; begin is a multiple of 16.
  void (*conv_row)(const ConvRow&, int64_t begin, int64_t end);
  void (*scan_head)(const ScanHead&);
  // The norm of x * silu(gate); `scratch` holds n floats.
  void (*gated_norm)(DType, void* out, const void* x, const void* gate, const void* weight,
                     int64_t n, float eps, float* scratch);

  // Floats of scratch that `attend` needs for a tile.
  int64_t (*attend_scratch)(int rows, int head_dim);
  // Fills `state` from the keys [key_begin, key_end) that each row may see.
  void (*attend)(const AttentionTile&, int64_t key_begin, int64_t key_end, AttentionState state,
                 float* scratch);
  // state += other, exactly as if their keys had been seen together (up to rounding).
  void (*attend_merge)(int rows, int value_dim, AttentionState state, AttentionState other);
  // Adds the sinks, divides by the sums and stores the tile's output.
  void (*attend_finish)(const AttentionTile&, AttentionState state);

  // The largest value; `*nan` says whether any is NaN (the result is then of no use).
  float (*largest)(const float* x, int64_t n, bool* nan);
  // The index of the first element equal to `value`, or n.
  int64_t (*find)(const float* x, int64_t n, float value);
  // x = exp((x - largest) * scale), and 1 where x equals largest; sums[c] = the sum of chunk c of
  // kSumChunk elements.
  void (*exp_weights)(float* x, int64_t n, float largest, float scale, float* sums);
  // The sum of exp(x - largest).
  double (*exp_sum)(const float* x, int64_t n, float largest);
  // Sums of chunks of kSumChunk elements.
  void (*chunk_sums)(const float* x, int64_t n, float* sums);
  // How many elements are > value.
  int64_t (*count_above)(const float* x, int64_t n, float value);
  // Appends the indices i >= begin with x[i] >= low and not x[i] >= high (a NaN for high is no
  // bound) to ids, until `capacity` of them or the end; returns where it stopped and adds to
  // *count. It may stop with up to 15 places free.
  int64_t (*select)(const float* x, int64_t begin, int64_t n, float low, float high, int32_t* ids,
                    int64_t capacity, int64_t* count);
  // -inf where the bit of `words` is 0; a NaN stays.
  void (*apply_mask)(float* x, int64_t n, const uint32_t* words);
  // For kPivots rising thresholds: how much weight and how many elements lie at or above each.
  void (*mass_above)(const float* x, int64_t n, const float* thresholds, double* mass,
                     int64_t* count);
  // Sets to zero what is below `value`, and what equals it from index `tie_end` on.
  void (*drop_below)(float* x, int64_t n, float value, int64_t tie_end);
};
inline constexpr int kPivots = 8;

// The table of the instruction set in use (see SetIsa).
const Kernels& ActiveKernels();

// One table each; null where the build does not have it.
const Kernels* KernelsAvx512();
const Kernels* KernelsAvx2();
const Kernels* KernelsBase();

}  // namespace octavo::cpu
