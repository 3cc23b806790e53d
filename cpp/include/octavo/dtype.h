// Element types of tensors and columns, and their sizes in bytes.
#pragma once

#include <cstdint>

namespace octavo {

enum class DType : uint8_t { kF32, kF16, kBF16, kF8E4M3, kI32, kI64, kU8, kU32, kU64 };

constexpr int DTypeSize(DType t) {
  switch (t) {
    case DType::kF8E4M3:
    case DType::kU8:
      return 1;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kF32:
    case DType::kI32:
    case DType::kU32:
      return 4;
    case DType::kI64:
    case DType::kU64:
      return 8;
  }
  return 0;
}

constexpr const char* DTypeName(DType t) {
  switch (t) {
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    case DType::kF8E4M3:
      return "float8_e4m3";
    case DType::kI32:
      return "int32";
    case DType::kI64:
      return "int64";
    case DType::kU8:
      return "uint8";
    case DType::kU32:
      return "uint32";
    case DType::kU64:
      return "uint64";
  }
  return "unknown";
}

}  // namespace octavo
