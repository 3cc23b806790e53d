// Tensor maps: what the driver checks when one is made, and the copy engine.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstring>

#include "emulator/hopper.h"
#include "emulator/mbarrier.h"
#include "emulator/memory.h"

namespace octavo::emulator {
namespace {

constexpr int kRank = 5;
constexpr int kSwizzledRow = 128;  // bytes
constexpr int kElement = 2;        // bytes
constexpr int kPiece = 16;         // bytes: what addresses and strides are multiples of
constexpr uint64_t kMagic = 0x4d504d54;

// What an emulated CUtensorMap holds; dimension 0 is the innermost.
struct Map {
  uint64_t magic;
  const char* data;
  uint64_t stride[kRank];  // bytes
  uint32_t extent[kRank];
  uint16_t box[kRank];
};
static_assert(sizeof(Map) <= sizeof(CUtensorMap));

CUresult Encode(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data,
                const cuuint64_t* extent, const cuuint64_t* stride, const cuuint32_t* box,
                const cuuint32_t* step, CUtensorMapInterleave interleave,
                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  // Only what the kernels use; the driver takes more.
  const bool form =
      rank == kRank && interleave == CU_TENSOR_MAP_INTERLEAVE_NONE &&
      swizzle == CU_TENSOR_MAP_SWIZZLE_128B && fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE &&
      (type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
  if (!form || reinterpret_cast<uintptr_t>(map) % 64 != 0) return CUDA_ERROR_INVALID_VALUE;
  if (data == nullptr || reinterpret_cast<uintptr_t>(data) % 16 != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  Map m{};
  m.magic = kMagic;
  m.data = static_cast<const char*>(data);
  for (int i = 0; i < kRank; ++i) {
    const uint64_t bytes = i == 0 ? kElement : stride[i - 1];
    const bool strided = i == 0 || (bytes % 16 == 0 && bytes < uint64_t{1} << 40);
    if (!strided || extent[i] < 1 || extent[i] > uint64_t{1} << 32 || box[i] < 1 || box[i] > 256 ||
        step[i] != 1) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    m.stride[i] = bytes;
    m.extent[i] = static_cast<uint32_t>(extent[i]);
    m.box[i] = static_cast<uint16_t>(box[i]);
  }
  // The inner side of a swizzled box is at most the swizzle's width; the kernels need it whole.
  if (box[0] * kElement != kSwizzledRow) return CUDA_ERROR_INVALID_VALUE;
  memcpy(static_cast<void*>(map), &m, sizeof(m));
  return CUDA_SUCCESS;
}

// Where row `row` of the box lies in memory; null outside of the tensor.
const char* RowOf(const Map& m, const int (&at)[kRank], int row) {
  const char* from = m.data;
  for (int i = 0; i < kRank; ++i) {
    int64_t c = at[i];
    if (i > 0) {
      c += row % m.box[i];
      row /= m.box[i];
    }
    if (c < 0 || c >= m.extent[i]) return nullptr;
    from += c * static_cast<int64_t>(m.stride[i]);
  }
  return from;
}

}  // namespace

void CopyBox(uint32_t to, const CUtensorMap& map, uint32_t mbarrier, const int (&at)[5],
             Where where) {
  Cta& cta = Cta::Current();
  Map m;
  memcpy(&m, &map, sizeof(m));
  if (m.magic != kMagic) cta.Fault("a tensor map that was not encoded", where);
  if (at[0] < 0 || (at[0] + m.box[0] > static_cast<int64_t>(m.extent[0]))) {
    cta.Fault("a box that is cut along its innermost dimension", where);
  }
  int rows = 1;
  for (int i = 1; i < kRank; ++i) rows *= m.box[i];
  std::vector<const char*> from;
  for (int r = 0; r < rows; ++r) {
    from.push_back(RowOf(m, at, r));
    if (from.back() != nullptr) CheckDeviceRange(cta, from.back(), kSwizzledRow, kPiece, where);
  }
  unsigned char* const first = cta.At(to, kSwizzledRow, where);
  cta.At(to + static_cast<uint32_t>((rows - 1) * kSwizzledRow), kSwizzledRow, where);
  unsigned char* const barrier = FindMbarrier(mbarrier, where);
  cta.Defer([first, to, barrier, from = std::move(from)] {
    uint32_t address = to;
    for (const char* row : from) {
      unsigned char* const line = first + (address - to);
      for (uint32_t piece = 0; piece < 8; ++piece) {
        unsigned char* const piece_to = line + ((piece ^ (address / kSwizzledRow)) % 8) * 16;
        if (row == nullptr) {
          memset(piece_to, 0, 16);
        } else {
          memcpy(piece_to, row + piece * 16, 16);
        }
      }
      address += kSwizzledRow;
    }
    CompleteBytes(barrier, static_cast<int>(from.size()) * kSwizzledRow);
  });
  cta.MayYield(8);
}

}  // namespace octavo::emulator

extern "C" cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function,
                                                        unsigned, unsigned long long,
                                                        cudaDriverEntryPointQueryResult* found) {
  const bool known = strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
  *function = known ? reinterpret_cast<void*>(octavo::emulator::Encode) : nullptr;
  *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
