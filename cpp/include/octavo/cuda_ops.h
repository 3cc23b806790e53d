// The CUDA backend: the ops of ops.h with all tensors in memory of the current device.
//
// A call checks shapes, dtypes and strides, enqueues kernels on `stream` and returns. It allocates
// nothing, does not synchronise and reads nothing on the host but shapes, so it may be captured
// into a graph; what a kernel does follows the numbers in device memory at the time of each replay.
// Nobody can check indices on the host: a kernel guards each index that it follows, and skips the
// token, row or entry that has a bad one. Paged attention stands in cuda_attention.h.
#pragma once

#include <cstdint>

#include "octavo/ops.h"
#include "octavo/ops_invariant.h"

struct CUstream_st;  // what cudaStream_t points to

namespace octavo::cuda {

using Stream = CUstream_st*;

Status RmsNorm(const RmsNormArgs& a, Stream stream);
Status AddRmsNorm(const AddRmsNormArgs& a, Stream stream);
Status Rope(const RopeArgs& a, Stream stream);
Status NormRopeCache(const NormRopeCacheArgs& a, Stream stream);
Status SlotMapping(const SlotMappingArgs& a, Stream stream);
// Slots must differ, else which token stays is undefined.
Status CacheWrite(const CacheWriteArgs& a, Stream stream);
Status SiluMul(const GatedActivationArgs& a, Stream stream);
Status GeluTanhMul(const GatedActivationArgs& a, Stream stream);
// bfloat16 and float16 with up to 16 rows of x, rows of x and weight on 16 bytes. On compute
// capability 9.0 up to 512 rows, from 17 on with K a multiple of 64, N of 16, out and bias on 16
// bytes and no norm. Everything else is refused, because a BLAS does it as well.
Status Linear(const LinearArgs& a, Stream stream);
// bfloat16 and float16, K a multiple of 8, rows of x and weight on 16 bytes. Slower than a BLAS.
Status Gemm(const GemmArgs& a, Stream stream);
Status FillTokens(const FillTokensArgs& a, Stream stream);
// `landing` holds an address of host memory that the device can write.
Status KeepTokens(const KeepTokensArgs& a, Stream stream);
Status Argmax(const ArgmaxArgs& a, Stream stream);
// `history` and `mask` hold addresses that the device can read. Up to 2^20 tokens of vocabulary.
Status Sample(const SampleArgs& a, Stream stream);
// Up to 2^20 tokens of vocabulary, k up to 1024.
Status Logprobs(const LogprobsArgs& a, Stream stream);

// Makes `device` the thread's current one for the life of the scope. CUDA keeps the current device
// for each thread, and a caller's tensors may lie on another.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

  const Status& status() const { return status_; }

 private:
  int previous_ = -1;  // -1: nothing to put back
  Status status_;
};

}  // namespace octavo::cuda
