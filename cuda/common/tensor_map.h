// Tensor maps: what the copy engine of sm_90 is told about a tensor in device memory.
#pragma once

#include <cuda.h>

#include <array>

#include "octavo/status.h"
#include "octavo/tensor_view.h"

namespace octavo::cuda {

inline constexpr int kMapRank = 5;  // the most that a map has

// Whether the driver makes tensor maps and one of `tensor` is possible: 16-bit elements, rank 5,
// the last dimension dense, strides that are multiples of 16 bytes. Reads dtype, shape and strides.
bool FitsTensorMap(const TensorView& tensor);

// A map that copies boxes of this shape, dimensions in the tensor's order, the last one 64
// elements: box rows of 128 bytes lie one after another in shared memory, 16-byte piece c of row r
// at piece c ^ (r % 8). Encoding is arithmetic on the host: nothing is allocated and no stream is
// touched. REQUIRES: FitsTensorMap(tensor); the data is 16-byte aligned.
Status EncodeTensorMap(const TensorView& tensor, const std::array<uint32_t, kMapRank>& box,
                       CUtensorMap* map);

}  // namespace octavo::cuda
