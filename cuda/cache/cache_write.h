// Cache write on CUDA: stores new keys and values into their slots of the paged cache (ops.h,
// CacheWriteArgs).
#pragma once

#include "octavo/ops.h"

struct CUstream_st;  // what cudaStream_t points to

namespace octavo::cuda {

using Stream = CUstream_st*;

// The op of ops.h with all tensors in device memory. Only enqueues one kernel: nothing is
// allocated, synchronised or read on the host but shapes, so it may be captured into a graph. The
// kernel checks each slot by itself: one that is negative or beyond the cache writes nothing. Slots
// must differ, else which token stays is undefined.
Status CacheWrite(const CacheWriteArgs& a, Stream stream);

}  // namespace octavo::cuda
