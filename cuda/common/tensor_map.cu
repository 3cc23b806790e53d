#include <string>

#include "common/launch.h"
#include "common/tensor_map.h"

namespace octavo::cuda {
namespace {

constexpr int64_t kStrideUnit = 16;                 // bytes
constexpr int64_t kStrideLimit = INT64_C(1) << 40;  // bytes
constexpr int64_t kExtentLimit = INT64_C(1) << 31;  // coordinates are int32
constexpr unsigned kDriverVersion = 12000;          // that brought tensor maps
constexpr int64_t kElementBytes = 2;

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);

// The driver's function, or null. Asked for at run time, so that nothing links to the driver.
Encode FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t error = cudaGetDriverEntryPointByVersion(
      "cuTensorMapEncodeTiled", &function, kDriverVersion, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<Encode>(function);
}

Encode DriverEncode() {
  static const Encode encode = FindEncode();
  return encode;
}

// The bytes from one entry of dimension i to the next; what is never stepped over may be anything.
int64_t StrideBytes(const TensorView& t, int i) {
  return t.shape[i] <= 1 ? kStrideUnit : t.stride[i] * kElementBytes;
}

}  // namespace

bool FitsTensorMap(const TensorView& t) {
  if (t.rank != kMapRank || DTypeSize(t.dtype) != kElementBytes) return false;
  if (t.stride[kMapRank - 1] != 1 || DriverEncode() == nullptr) return false;
  for (int i = 0; i < kMapRank; ++i) {
    if (t.shape[i] < 1 || t.shape[i] >= kExtentLimit) return false;
  }
  for (int i = 0; i + 1 < kMapRank; ++i) {
    const int64_t bytes = StrideBytes(t, i);
    if (bytes <= 0 || bytes >= kStrideLimit || bytes % kStrideUnit != 0) return false;
  }
  return true;
}

Status EncodeTensorMap(const TensorView& t, const std::array<uint32_t, kMapRank>& box,
                       CUtensorMap* map) {
  cuuint64_t extent[kMapRank], stride[kMapRank - 1];
  cuuint32_t box_extent[kMapRank], step[kMapRank];
  for (int i = 0; i < kMapRank; ++i) {  // the driver counts from the innermost dimension
    const int from = kMapRank - 1 - i;
    extent[i] = static_cast<cuuint64_t>(t.shape[from]);
    box_extent[i] = box[static_cast<size_t>(from)];
    step[i] = 1;
    if (i > 0) stride[i - 1] = static_cast<cuuint64_t>(StrideBytes(t, from));
  }
  const CUtensorMapDataType type =
      t.dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult error =
      DriverEncode()(map, type, kMapRank, t.data, extent, stride, box_extent, step,
                     CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                     CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error == CUDA_SUCCESS) return Status::Ok();
  return Status::Internal("cuTensorMapEncodeTiled: error " +
                          std::to_string(static_cast<int>(error)));
}

}  // namespace octavo::cuda
