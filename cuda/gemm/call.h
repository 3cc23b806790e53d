// A product on a tile of the caller's choice: for tests, to which all tiles must give one answer.
#pragma once

#include "gemm/choice.h"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {

// As Gemm. REQUIRES: what Gemm checks.
Status EnqueueGemm(const GemmArgs& a, GemmTile tile, Stream stream);

}  // namespace octavo::cuda
