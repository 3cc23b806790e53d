// Ops for a model whose rows must not depend on their company, where the usual ones are a BLAS's
// and torch's: a matrix product of any number of rows, and the soft cap of logits. Conventions are
// those of ops.h.
#pragma once

#include <optional>

#include "octavo/status.h"
#include "octavo/tensor_view.h"

namespace octavo {

// out = x weight^T + bias. The bits of an element are a function of its row of x, its row of the
// weight and its bias alone: not of M, of the threads or of where the rows lie. CUDA's and the
// CPU's bits differ, as do those of two instruction sets.
struct GemmArgs {
  TensorView out;                  // [M, N] of T
  TensorView x;                    // [M, K] of T
  TensorView weight;               // [N, K] of T
  std::optional<TensorView> bias;  // [N] of T
};

// x = cap * tanh(x / cap), in place.
struct SoftCapArgs {
  TensorView x;  // [M, N] of T
  float cap = 0.0f;
};

Status Validate(const GemmArgs& a);
Status Validate(const SoftCapArgs& a);

namespace cpu {

Status Gemm(const GemmArgs& a);
Status SoftCap(const SoftCapArgs& a);

}  // namespace cpu
}  // namespace octavo
