// Tensors: views as a caller of the ops might pass them. Each is asked for as the op wants it, and
// is made so for the most part; else its dtype, rank, extents, strides or memory are others. The
// memory is exactly what the view spans, so that AddressSanitizer sees the first byte beyond it.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "fuzz/bytes.h"
#include "octavo/tensor_view.h"

namespace octavo::fuzz {

class Tensors {
 public:
  explicit Tensors(Bytes* bytes) : bytes_(*bytes) {}

  // Of the float dtype that a call shares.
  TensorView Floats(std::initializer_list<int64_t> extents) { return Make(float_dtype_, extents); }
  TensorView F32(std::initializer_list<int64_t> extents) { return Make(DType::kF32, extents); }
  // Indices in [low, limit) for the most part.
  TensorView Ints(std::initializer_list<int64_t> extents, int64_t limit, int64_t low = 0);
  TensorView Longs(int64_t n, int64_t limit) { return Longs({n}, limit); }
  TensorView Longs(std::initializer_list<int64_t> extents, int64_t limit);
  // [rows + 1]: rises from 0 to `end` or less for the most part.
  TensorView Starts(int64_t rows, int64_t end);
  TensorView Make(DType dtype, std::initializer_list<int64_t> extents);
  // Memory that lives as long as this, for what is passed by address.
  void* Memory(size_t bytes);

  void ChooseDType() {
    constexpr DType kFloats[] = {DType::kF32, DType::kBF16, DType::kF16};
    float_dtype_ = kFloats[bytes_.Below(3)];
  }

 private:
  void Distort(TensorView* view);
  void Back(TensorView* view);
  void FillFloats(const TensorView& view);

  Bytes& bytes_;
  DType float_dtype_ = DType::kF32;
  std::vector<std::unique_ptr<std::byte[]>> memory_;
  TensorView last_;  // what another may share its memory with
};

}  // namespace octavo::fuzz
