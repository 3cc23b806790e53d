// The ops of a mixture of experts: who goes where, the product of each expert with its own rows,
// and the sum of what comes back. Conventions are those of ops.h; E experts, k of them a token, P
// pairs of a token and one of its experts.
//
// The parts are ops of their own, because models differ in what stands between them (where the
// router's weight is applied, which activation) and backends in how the product is done.
#pragma once

#include <cstdint>
#include <optional>

#include "octavo/status.h"
#include "octavo/tensor_view.h"

namespace octavo {

// The k experts of each token with the largest scores, falling, the lower id first among equals,
// and their weights: the scores, softmax over all E or sigmoid of each, with `renormalize` divided
// by the sum of the k, times `scale`. A row with NaN gets the experts 0..k-1 and NaN weights, so
// that it fails alone.
// DeepSeek's limits on the choice: `bias` is added to the scores that are compared, not to weights;
// of `groups` runs of neighbouring experts only those `top_groups` take part whose `group_best`
// largest (biased) scores have the largest sums.
struct MoeRouteArgs {
  TensorView ids;      // [N, k] int32, out; 1 <= k <= E
  TensorView weights;  // [N, k] float32, out
  TensorView logits;   // [N, E] float32
  bool sigmoid = false;
  bool renormalize = false;
  std::optional<TensorView> bias = std::nullopt;  // [E] float32
  int64_t groups = 1;                             // a divisor of E
  int64_t top_groups = 1;                         // their experts are at least k
  int64_t group_best = 1;                         // up to E / groups
  float scale = 1.0f;
};

// Sorts the pairs by expert, those of one expert by token. Pair (n, j) goes to place[n, j], where
// token[place[n, j]] = n, and expert e owns the places [start[e], start[e + 1]).
struct MoeGroupArgs {
  TensorView place;  // [N, k] int32, out
  TensorView token;  // [N * k] int32, out
  TensorView start;  // [E + 1] int32, out
  TensorView ids;    // [N, k] int32, in [0, E)
};

// out[p] = weight[e] x[p] + bias[e] for the places p of each expert e. As Linear it reads each
// weight that is needed once, at the speed of memory, and an element is the same bits in any
// company; with many rows an expert a BLAS is faster.
struct GroupedLinearArgs {
  TensorView out;                  // [P, M] of T
  TensorView x;                    // [P, K] of T
  TensorView weight;               // [E, M, K] of T
  TensorView start;                // [E + 1] int32, from 0 to P, never falling
  std::optional<TensorView> bias;  // [E, M] of T
};

// out[n] = the sum over j of weights[n, j] * rows[place[n, j]], in the order of j.
struct MoeCombineArgs {
  TensorView out;      // [N, H] of T
  TensorView rows;     // [P, H] of T
  TensorView place;    // [N, k] int32, in [0, P)
  TensorView weights;  // [N, k] float32
};

// GPT-OSS's gate: out = (clamp(up, -limit, limit) + 1) * g * sigmoid(alpha * g) with
// g = min(gate, limit) and gate_up = [gate | up] along the last dimension.
struct ClampedSwigluArgs {
  TensorView out;      // [N, I] of T
  TensorView gate_up;  // [N, 2I] of T
  float alpha = 1.702f;
  float limit = 7.0f;
};

Status Validate(const MoeRouteArgs& a);
Status Validate(const MoeGroupArgs& a);
Status Validate(const GroupedLinearArgs& a);
Status Validate(const MoeCombineArgs& a);
Status Validate(const ClampedSwigluArgs& a);

// REQUIRES: Validate(a) is ok and the index tensors lie in host memory.
Status ValidateIndices(const MoeGroupArgs& a);
Status ValidateIndices(const GroupedLinearArgs& a);
Status ValidateIndices(const MoeCombineArgs& a);

namespace cpu {

Status MoeRoute(const MoeRouteArgs& a);
Status MoeGroup(const MoeGroupArgs& a);
Status GroupedLinear(const GroupedLinearArgs& a);
Status MoeCombine(const MoeCombineArgs& a);
Status ClampedSwiglu(const ClampedSwigluArgs& a);

}  // namespace cpu
}  // namespace octavo
