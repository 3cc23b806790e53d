// The ops of a model step: argument structs, their validation, and the CPU backend.
//
// Every backend takes the same structs: `octavo::cpu::X(const XArgs&)` here (library octavo::cpu)
// and `octavo::cuda::X(const XArgs&, stream)` where CUDA is built. Letters in shapes: N tokens, R
// rows, S samples, V vocabulary, H hidden, Hq query heads, Hk KV heads, D head dim, B blocks, bs
// tokens in a block. "T" is float32, bfloat16 or float16, one and the same within a call. The last
// dimension is contiguous; the others may be strided unless a comment says dense. Arithmetic is
// float32 inside and rounds once, when it stores.
//
// A token's place in the cache is its slot: block * bs + position % bs. Row r owns the tokens
// [query_start[r], query_start[r + 1]); row_slot[r] is its line in the block table.
//
// Validate reads shapes, dtypes and strides only. ValidateIndices also reads the index tensors, so
// it needs them in host memory; it runs after Validate. The CPU backend runs both before it touches
// any other memory: a bad index is a Status, never an access out of range, and an output that
// shares memory with an index tensor, or a cache with what is copied into it, is refused. Calls
// allocate nothing once their thread's scratch has grown. Any thread may call; one call at a time
// uses the worker threads well.
#pragma once

#include <cstdint>
#include <optional>

#include "octavo/status.h"
#include "octavo/tensor_view.h"

namespace octavo {

// out = x / sqrt(mean(x^2) + eps) * (weight + weight_offset). Gemma stores weight - 1: its offset
// is 1.
struct RmsNormArgs {
  TensorView out;     // [N, H] or [N, heads, H] of T; may be x itself
  TensorView x;       // as out
  TensorView weight;  // [H] of T
  float eps = 1e-6f;
  float weight_offset = 0.0f;
  // A row's bits do not depend on how many rows there are. The CPU's never do.
  bool invariant = false;
};

// residual += x, rounded to T; out = rms_norm(residual).
struct AddRmsNormArgs {
  TensorView out;       // [N, H] of T; may be x itself
  TensorView x;         // as out
  TensorView residual;  // as out, updated in place
  TensorView weight;    // [H] of T
  float eps = 1e-6f;
  float weight_offset = 0.0f;
  bool invariant = false;
};

// Rotates the first R dims of every head in place: halves (neox) or neighbouring pairs
// (interleaved, GPT-J).
struct RopeArgs {
  TensorView q;         // [N, Hq, D] of T
  TensorView k;         // [N, Hk, D] of T
  TensorView position;  // [N] int32, in [0, max_pos)
  TensorView cos_sin;   // [max_pos, R] float32: R/2 cosines, then R/2 sines; R even, R <= D
  bool interleaved = false;
};

// The cache slot of every token, from the block table. Tokens past query_start[R] get -1, which
// writes nothing.
struct SlotMappingArgs {
  TensorView slot;         // [N] int64, out
  TensorView position;     // [N] int32
  TensorView query_start;  // [R + 1] int32, from 0, never falling
  TensorView row_slot;     // [R] int32
  TensorView block_table;  // [slots, max_blocks] int32
  int64_t block_size = 0;
};

// Stores K and V of new tokens into their slots. A negative slot is skipped.
//
// A cache of T holds them as they are. A cache of e4m3 holds x / scale, a float32 quotient, rounded
// to nearest, ties to even; what is beyond +-448 (infinity too) becomes +-448, NaN stays NaN. What
// reads such a cache multiplies by the same scale.
struct CacheWriteArgs {
  TensorView k;          // [N, Hk, D] of T
  TensorView v;          // [N, Hk, D] of T
  TensorView cache;      // [B, 2, Hk, bs, D] of T or e4m3: one layer's view of the pool
  TensorView slot;       // [N] int64, < B * bs
  float k_scale = 1.0f;  // finite, > 0; 1 where the cache is of T
  float v_scale = 1.0f;
};

// What stands between the projections and attention, in one pass and with the bits of rms_norm (of
// each head of q and k, where weights are given), rope and cache_write one after another. q changes
// in place, k and v go into their slots. What is left in k is unspecified.
struct NormRopeCacheArgs {
  TensorView q;         // [N, Hq, D] of T
  TensorView k;         // [N, Hk, D] of T
  TensorView v;         // as k
  TensorView position;  // [N] int32, in [0, max_pos)
  TensorView cos_sin;   // [max_pos, R] float32, as in RopeArgs
  TensorView cache;     // [B, 2, Hk, bs, D] of T or e4m3, as in CacheWriteArgs
  TensorView slot;      // [N] int64, < B * bs; a negative one is skipped
  std::optional<TensorView> q_norm = std::nullopt;  // [D] of T; both or neither
  std::optional<TensorView> k_norm = std::nullopt;
  float eps = 1e-6f;
  float weight_offset = 0.0f;
  bool interleaved = false;
  float k_scale = 1.0f;  // as in CacheWriteArgs
  float v_scale = 1.0f;
};

// Causal attention of each row's newest tokens over its cached keys; prefill, decode and mixed rows
// in one call. Query i of row r stands at position seq_len[r] - (query_start[r + 1] -
// query_start[r]) + i. With window w > 0 it sees the keys p with position - w < p <= position, or,
// chunked, those of the chunk [w * i, w * (i + 1)) that it stands in.
// soft_cap c > 0 replaces a score s by c * tanh(s / c). A sink is one more logit of the softmax,
// without a value. A row with seq_len 0 writes nothing. Slots past seq_len may hold anything.
struct PagedAttentionArgs {
  TensorView out;          // [N, Hq, D] of T
  TensorView q;            // as out; Hq is a multiple of Hk; D is a multiple of 8, 8..256
  TensorView cache;        // [B, 2, Hk, bs, D] of T or e4m3
  TensorView block_table;  // [slots, max_blocks] int32
  TensorView row_slot;     // [R] int32
  TensorView query_start;  // [R + 1] int32, from 0, never falling
  TensorView seq_len;      // [R] int32: cached tokens of the row, its new ones included
  float scale = 1.0f;
  int64_t window = 0;
  float soft_cap = 0.0f;
  std::optional<TensorView> sinks = std::nullopt;  // [Hq] float32
  bool chunked = false;
  float k_scale = 1.0f;  // as in CacheWriteArgs: keys and values are what
  float v_scale = 1.0f;  // the cache holds, times these
  // The bits of a query depend on its own keys alone: not on how many queries its row has beside
  // it, so that any chunking of a prompt gives the same. Slower where rows are long.
  bool invariant = false;
};

// norm_rope_cache, then paged_attention of what it left, with their bits: all that stands between
// the projections and the product behind attention. q, the cache and its scales are those of
// `attention`; what is left in q and k is unspecified.
//
// REQUIRES: the slot of a row's query is where the row's line of block_table has its position. What
// of a token of no row, or of one with seq_len 0, is stored in its slot is unspecified: such a
// token's slot should be negative. Where no row has more than one query, none attends to what
// another row of the call stores.
struct NormRopeAttentionArgs {
  PagedAttentionArgs attention;
  TensorView k;         // [N, Hk, D] of T
  TensorView v;         // as k
  TensorView position;  // as in NormRopeCacheArgs, like all that follows
  TensorView cos_sin;
  TensorView slot;
  std::optional<TensorView> q_norm = std::nullopt;
  std::optional<TensorView> k_norm = std::nullopt;
  float eps = 1e-6f;
  float weight_offset = 0.0f;
  bool interleaved = false;
};

// The first key that a query at `position` sees.
inline int64_t FirstVisibleKey(const PagedAttentionArgs& a, int64_t position) {
  if (a.window == 0) return 0;
  if (a.chunked) return position - position % a.window;
  return position < a.window ? 0 : position - a.window + 1;
}

// out = act(gate) * up with gate_up = [gate | up] along the last dimension.
struct GatedActivationArgs {
  TensorView out;      // [N, I] of T
  TensorView gate_up;  // [N, 2I] of T
};

// What becomes of a product whose columns are [gate | up].
enum class Gate { kNone, kSilu, kGeluTanh };

// What a product leaves for the next one, whose input is a norm of out: that norm but for the
// division by the root mean square, which the next product does to its sums (LinearArgs::squares).
// Not in float16, which might not hold it.
struct HalfNorm {
  TensorView weight;  // [N] of T
  float offset = 0.0f;
  TensorView scaled;   // [M, N] of T, out: what out holds in the end * (weight + offset)
  TensorView squares;  // [M, SquaresOf(N)] float32, out: sums of squares of 64 columns of out each
};

// The sums of squares of a row of n columns, in fours: what lies past ceil(n / 64) means nothing.
constexpr int64_t kSquaresColumns = 64;
constexpr int64_t SquaresOf(int64_t n) {
  return (n + 4 * kSquaresColumns - 1) / (4 * kSquaresColumns) * 4;
}

// out = x weight^T + bias, for few rows of x: it reads the weight once, at the speed of memory. An
// element does not depend on how many rows there are (on CUDA: of up to 16). For many rows a BLAS
// is faster; where that begins is the caller's to know.
//
// What stands around a product in a model can be done on the way: the norm of x before it, the gate
// after it, the sum with what out holds. Each rounds to T where the op that it stands for would
// have stored: rms_norm, linear, silu_mul or gelu_tanh_mul, and an addition. On a CPU the bits are
// those of that sequence. On CUDA the sums of the norm and of a gated product run in an order of
// their own.
//
// From 17 rows on a norm stands between two products, half of it in each (leaves, squares), on CUDA
// alone, where a kernel of its own takes long beside them. As many numbers are rounded as by
// rms_norm and linear, but others: x * weight in place of x / rms * weight.
struct LinearArgs {
  TensorView out;                  // [M, N] of T; [M, N / 2] behind a gate
  TensorView x;                    // [M, K] of T
  TensorView weight;               // [N, K] of T
  std::optional<TensorView> bias;  // [N] of T
  // Nothing enqueued before this call writes weight, bias or norm. CUDA then reads ahead, while the
  // kernel in front of it still runs.
  bool weight_ready = false;
  std::optional<TensorView> norm = std::nullopt;  // [K] of T: x is rms_norm(x) with this weight
  float eps = 1e-6f;
  float norm_offset = 0.0f;
  Gate gate = Gate::kNone;
  bool add = false;  // out += instead of out =
  // [M, SquaresOf(K)] float32: x is HalfNorm::scaled, and its product is divided by
  // sqrt(sum(squares) / K + eps), a row's, before anything else happens to it. Not with norm.
  std::optional<TensorView> squares = std::nullopt;
  std::optional<HalfNorm> leaves = std::nullopt;  // not with a gate
};

// A token_id of -1 stands for the token that its row's slot sampled last: it is replaced by
// last_token[row_slot[row]], or by 0 where that is -1 too (the row failed; what it computes now is
// dropped, but its embedding must exist).
struct FillTokensArgs {
  TensorView token_id;     // [N] int32, in place
  TensorView query_start;  // [R + 1] int32, from 0, never falling
  TensorView row_slot;     // [R] int32
  TensorView last_token;   // [slots] int32
};

// last_token[row_slot[sample_row[s]]] = token[s]: what FillTokens of the next step takes. Of
// several samples of one row one stays; a row of drafts has them, after which no token is unknown.
struct KeepTokensArgs {
  TensorView last_token;  // [slots] int32, out
  TensorView token;       // [S] int32
  TensorView sample_row;  // [S] int32
  TensorView row_slot;    // [R] int32
  // [1] int64: the address of S int32 in host memory that the backend can write, where all of
  // `token` goes too; 0: nowhere. A number in memory, because a captured graph is launched for
  // steps that land in different places.
  std::optional<TensorView> landing = std::nullopt;
};

// token = the id of the largest logit, the lowest id among equals; -1 for a row that contains NaN.
struct ArgmaxArgs {
  TensorView token;   // [S] int32, out
  TensorView logits;  // [S, V] of T
};

// One token for each row of logits, in this order: mask, bias, penalties (repetition over prompt
// and output, then frequency and presence over the output), argmax if temperature < 1e-5, else
// temperature, min_p, top_k, top_p, and the inverse of the cumulative distribution in token-id
// order at one uniform number hashed from (seed, sample_index). Everything is a function of the row
// alone. top_k keeps exactly k, top_p the smallest set that reaches p (the crossing token
// included); among equal logits the lower id is kept. A row that contains NaN, has nothing allowed
// or carries a parameter out of range gets token -1. Ids of a history outside [0, V) count for
// nothing: they are placeholders.
struct SampleArgs {
  TensorView token;         // [S] int32, out
  TensorView logits;        // [S, V] of T; clobbered where float32
  TensorView temperature;   // [S] float32, >= 0
  TensorView top_k;         // [S] int32, <= 0 is off
  TensorView top_p;         // [S] float32, >= 1 is off
  TensorView min_p;         // [S] float32, 0 is off
  TensorView presence;      // [S] float32
  TensorView frequency;     // [S] float32
  TensorView repetition;    // [S] float32, > 0, 1 is off
  TensorView seed;          // [S] uint64
  TensorView sample_index;  // [S] int64
  TensorView
      bias_start;  // [S + 1] int32: row s owns bias entries [bias_start[s], bias_start[s + 1])
  TensorView bias_token;  // [entries] int32, in [0, V)
  TensorView bias_value;  // [entries] float32, -inf bans
  // Addresses are such as the backend can read: of host memory on the CPU, of device memory on
  // CUDA.
  TensorView history;      // [S] uint64: address of the row's int32 tokens (prompt, then output)
  TensorView history_len;  // [S] int32
  TensorView prompt_len;   // [S] int32, <= history_len
  TensorView mask;  // [S] uint64: 0, or address of ceil(V / 32) uint32 words, bit 1 = allowed
  // [S, V] float32, clobbered: needed where logits have 16 bits, whose edits would be rounded
  // there.
  std::optional<TensorView> scratch = std::nullopt;
};

// Log-probabilities of raw logits. Column 0 is the given token, columns 1..k the largest logits,
// falling, the lower id first among equals. rank = 1 + how many logits are larger than the token's.
// A row with token -1 (the sampler refused it) gets ids -1, values -inf and rank 0.
struct LogprobsArgs {
  TensorView ids;     // [S, k + 1] int32, out
  TensorView values;  // [S, k + 1] float32, out
  TensorView rank;    // [S] int32, out
  TensorView logits;  // [S, V] float32
  TensorView token;   // [S] int32, in [-1, V)
  int64_t k = 0;      // 0..V
};

Status Validate(const RmsNormArgs& a);
Status Validate(const AddRmsNormArgs& a);
Status Validate(const RopeArgs& a);
Status Validate(const SlotMappingArgs& a);
Status Validate(const CacheWriteArgs& a);
Status Validate(const NormRopeCacheArgs& a);
Status Validate(const PagedAttentionArgs& a);
Status Validate(const NormRopeAttentionArgs& a);
Status Validate(const GatedActivationArgs& a);
Status Validate(const LinearArgs& a);
Status Validate(const FillTokensArgs& a);
Status Validate(const KeepTokensArgs& a);
Status Validate(const ArgmaxArgs& a);
Status Validate(const SampleArgs& a);
Status Validate(const LogprobsArgs& a);

// REQUIRES: Validate(a) is ok and the index tensors lie in host memory.
Status ValidateIndices(const RopeArgs& a);
Status ValidateIndices(const SlotMappingArgs& a);
Status ValidateIndices(const CacheWriteArgs& a);
Status ValidateIndices(const NormRopeCacheArgs& a);
Status ValidateIndices(const PagedAttentionArgs& a);
Status ValidateIndices(const NormRopeAttentionArgs& a);
Status ValidateIndices(const FillTokensArgs& a);
Status ValidateIndices(const KeepTokensArgs& a);
Status ValidateIndices(const SampleArgs& a);
Status ValidateIndices(const LogprobsArgs& a);

namespace cpu {

Status RmsNorm(const RmsNormArgs& a);
Status AddRmsNorm(const AddRmsNormArgs& a);
Status Rope(const RopeArgs& a);
Status SlotMapping(const SlotMappingArgs& a);
Status CacheWrite(const CacheWriteArgs& a);
Status NormRopeCache(const NormRopeCacheArgs& a);
Status PagedAttention(const PagedAttentionArgs& a);
Status NormRopeAttention(const NormRopeAttentionArgs& a);
Status SiluMul(const GatedActivationArgs& a);
Status GeluTanhMul(const GatedActivationArgs& a);
Status Linear(const LinearArgs& a);
Status FillTokens(const FillTokensArgs& a);
Status KeepTokens(const KeepTokensArgs& a);
Status Argmax(const ArgmaxArgs& a);
Status Sample(const SampleArgs& a);
Status Logprobs(const LogprobsArgs& a);

// Threads that one op may use, the caller's included. 0 (the default) follows the OpenMP runtime
// that the process has loaded (torch.set_num_threads governs it), or takes every core where there
// is none.
void SetNumThreads(int n);
int NumThreads();

// Whose threads they are: "openmp", borrowed from the loaded runtime, or "pool", our own.
const char* ThreadBackend();

// The instruction set in use: "avx512", "avx2" or "base" (SSE2 or NEON). SetIsa picks another for
// tests; it returns kUnavailable where the machine or the build lacks it. Not while an op runs.
const char* Isa();
Status SetIsa(const char* name);

}  // namespace cpu
}  // namespace octavo
