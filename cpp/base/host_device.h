// Marks functions that run on the host and on a CUDA device: they are written and tested once.
#pragma once

#ifdef __CUDACC__
#define OCTAVO_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define OCTAVO_HOST_DEVICE inline
#endif
