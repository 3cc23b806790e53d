// The ops of recurrent layers (Mamba2 and its hybrids): argument structs, validation, CPU backend.
// Conventions are those of octavo/ops.h. Further letters: C channels, K taps of a convolution, H
// heads of P values each, S state size, G groups of heads that share B and C.
//
// A state is one block of the pool, not one slot a token. Row r starts from the state in block
// source[r] (negative: from zero, and the memory is not read) and leaves the state after its last
// token in block target[r] (negative: the row is skipped). The two may be one block. A row's result
// is the same bits in any batch, in any chunks and on any number of threads.
#pragma once

#include <optional>

#include "octavo/ops.h"

namespace octavo {

// Where rows find the state before their first token and leave the one after their last, by the
// convention of docs/contracts/batch.md: a position's state lies in the table entry of that
// position. A row that starts at position 0 gets source -1, one without tokens both -1.
struct StateMappingArgs {
  TensorView source;       // [R] int32, out
  TensorView target;       // [R] int32, out
  TensorView query_start;  // [R + 1] int32, from 0, never falling
  TensorView row_slot;     // [R] int32
  TensorView seq_len;      // [R] int32: tokens of the row once the step has run
  TensorView block_table;  // [slots, max_blocks] int32
  int64_t block_size = 0;
};

// out[t] = silu(bias + sum over k of weight[k] * x[t - (K - 1) + k]) for every channel, where what
// comes before the row's first token is in its state: the K - 1 inputs before it, oldest first.
struct CausalConv1dArgs {
  TensorView out;                  // [N, C] of T
  TensorView x;                    // [N, C] of T
  TensorView weight;               // [C, K] of T, K 2..8
  std::optional<TensorView> bias;  // [C] of T
  TensorView state;                // [B, K - 1, C] of T
  TensorView query_start;          // [R + 1] int32, from 0, never falling
  TensorView source;               // [R] int32, < B
  TensorView target;               // [R] int32, < B
};

// The state-space recurrence of Mamba2 (Dao and Gu, 2024), one token after another. For each head,
// with d = softplus(dt + dt_bias):
//   state[s, p] = state[s, p] * exp(-exp(a_log) * d) + d * b[s] * x[p]
//   out[p] = sum over s of c[s] * state[s, p] + skip * x[p]
struct SsmScanArgs {
  TensorView out;          // [N, H, P] of T
  TensorView x;            // as out
  TensorView dt;           // [N, H] of T
  TensorView b;            // [N, G, S] of T; G divides H; S 1..1024
  TensorView c;            // as b
  TensorView a_log;        // [H] of T
  TensorView dt_bias;      // [H] of T
  TensorView skip;         // [H] of T: the paper's D
  TensorView state;        // [B, H, S, P] float32; S and P dense
  TensorView query_start;  // [R + 1] int32, from 0, never falling
  TensorView source;       // [R] int32, < B
  TensorView target;       // [R] int32, < B
};

// y = x * silu(gate); out = y / sqrt(mean(y^2) + eps) * weight, the mean over each of G groups of
// neighbours.
struct GatedRmsNormArgs {
  TensorView out;     // [N, I] of T; may be x itself
  TensorView x;       // as out
  TensorView gate;    // as out
  TensorView weight;  // [I] of T
  int64_t groups = 1;
  float eps = 1e-6f;
};

Status Validate(const StateMappingArgs& a);
Status Validate(const CausalConv1dArgs& a);
Status Validate(const SsmScanArgs& a);
Status Validate(const GatedRmsNormArgs& a);

// REQUIRES: Validate(a) is ok and the index tensors lie in host memory.
Status ValidateIndices(const StateMappingArgs& a);
Status ValidateIndices(const CausalConv1dArgs& a);
Status ValidateIndices(const SsmScanArgs& a);

namespace cpu {

Status StateMapping(const StateMappingArgs& a);
Status CausalConv1d(const CausalConv1dArgs& a);
Status SsmScan(const SsmScanArgs& a);
Status GatedRmsNorm(const GatedRmsNormArgs& a);

}  // namespace cpu
}  // namespace octavo
