#include "fuzz/tensors.h"

#include <algorithm>
#include <cstring>

namespace octavo::fuzz {
namespace {

constexpr int64_t kMostBytes = 1 << 20;

// Elements from the first to the last one, or 0. Strides are not negative: no tensor library lends
// such a view.
int64_t Span(const TensorView& v) {
  int64_t last = 0;
  for (int d = 0; d < v.rank; ++d) {
    if (v.shape[d] == 0) return 0;
    last += (v.shape[d] - 1) * v.stride[d];
  }
  return last + 1;
}

void MakeDense(TensorView* v) {
  int64_t step = 1;
  for (int d = v->rank - 1; d >= 0; --d) {
    v->stride[d] = step;
    step *= v->shape[d];
  }
}

uint32_t Scramble(uint32_t* state) {
  *state = *state * 1664525u + 1013904223u;
  return *state >> 8;
}

}  // namespace

void* Tensors::Memory(size_t bytes) {
  memory_.push_back(std::make_unique<std::byte[]>(bytes));
  return memory_.back().get();
}

TensorView Tensors::Make(DType dtype, std::initializer_list<int64_t> extents) {
  TensorView view = TensorView::Dense(nullptr, dtype, extents);
  const bool shared = bytes_.OneIn(64) && last_.data != nullptr && last_.dtype == dtype;
  if (bytes_.OneIn(12)) Distort(&view);
  if (shared && Span(view) <= Span(last_)) {
    view.data = last_.data;
    return view;
  }
  Back(&view);
  FillFloats(view);
  last_ = view;
  return view;
}

void Tensors::Distort(TensorView* v) {
  const int d = v->rank > 0 ? bytes_.Below(v->rank) : 0;
  switch (bytes_.Below(9)) {
    case 0:
      v->dtype = DType(bytes_.Below(int32_t(DType::kU64) + 1));
      break;
    case 1:
      if (v->rank < kMaxRank) v->shape[v->rank++] = bytes_.Below(3);
      MakeDense(v);
      break;
    case 2:
      if (v->rank > 0) --v->rank;
      MakeDense(v);
      break;
    case 3:
      v->shape[d] = bytes_.Below(9);
      MakeDense(v);
      break;
    case 4:  // as a slice of a larger tensor
      for (int i = 0; i + 1 < v->rank; ++i) v->stride[i] += 1 + d;
      break;
    case 5:  // expanded
      v->stride[d] = 0;
      break;
    case 6:  // transposed, or every second element
      if (v->rank > 0) v->stride[v->rank - 1] = 2;
      break;
    case 7:  // without elements, however many the other extents promise
      v->shape[bytes_.Below(v->rank + 1) % kMaxRank] = 0;
      v->shape[d] = bytes_.OneIn(2) ? int64_t{1} << 40 : 0;
      if (v->num_elements() != 0) v->shape[d] = 0;
      MakeDense(v);
      break;
    default:
      std::swap(v->stride[0], v->stride[d]);
      std::swap(v->shape[0], v->shape[d]);
  }
}

void Tensors::Back(TensorView* v) {
  const int64_t bytes = Span(*v) * DTypeSize(v->dtype);
  // Empty tensors have no memory.
  if (bytes == 0) return;
  if (bytes < 0 || bytes > kMostBytes) {
    v->shape[0] = 0;
    return;
  }
  v->data = Memory(size_t(bytes));
}

void Tensors::FillFloats(const TensorView& v) {
  if (v.data == nullptr) return;
  uint32_t state = bytes_.Byte();
  const bool wild = state >= 224;  // any bit pattern, NaN and infinity among them
  const int64_t count = Span(v);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t draw = Scramble(&state);
    const float value = float(int32_t(draw % 4001) - 2000) / 500.0f;
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    if (wild) bits = draw << 8 | (draw & 255);
    std::byte* at = static_cast<std::byte*>(v.data) + i * DTypeSize(v.dtype);
    if (v.dtype == DType::kF32) {
      std::memcpy(at, &bits, 4);
    } else if (v.dtype == DType::kBF16) {
      std::memcpy(at, reinterpret_cast<const std::byte*>(&bits) + 2, 2);
    } else if (v.dtype == DType::kF16) {
      // Small normal numbers, or anything.
      const uint16_t half = uint16_t(wild ? draw : 0x3000 | (draw & 0x8BFF));
      std::memcpy(at, &half, 2);
    }
  }
}

TensorView Tensors::Ints(std::initializer_list<int64_t> extents, int64_t limit, int64_t low) {
  const TensorView v = Make(DType::kI32, extents);
  if (v.data == nullptr || v.dtype != DType::kI32) return v;
  const int64_t range = std::clamp<int64_t>(limit - low, 1, 200);
  for (int64_t i = 0, n = Span(v); i < n; ++i) {
    const uint8_t byte = bytes_.Byte();
    v.ptr<int32_t>()[i] = byte < 250 ? int32_t(low + byte % range) : bytes_.Int();
  }
  return v;
}

TensorView Tensors::Longs(std::initializer_list<int64_t> extents, int64_t limit) {
  const TensorView v = Make(DType::kI64, extents);
  if (v.data == nullptr || v.dtype != DType::kI64) return v;
  for (int64_t i = 0, count = Span(v); i < count; ++i) {
    const uint8_t byte = bytes_.Byte();
    v.ptr<int64_t>()[i] = byte < 250 ? byte % std::clamp<int64_t>(limit, 1, 200) : bytes_.Number();
  }
  return v;
}

TensorView Tensors::Starts(int64_t rows, int64_t end) {
  const TensorView v = Make(DType::kI32, {rows + 1});
  if (v.data == nullptr || v.dtype != DType::kI32) return v;
  int64_t at = 0;
  for (int64_t i = 0, n = Span(v); i < n; ++i) {
    const uint8_t byte = bytes_.Byte();
    if (i > 0) at = std::min(end, at + byte % 4);
    v.ptr<int32_t>()[i] = byte < 250 ? int32_t(at) : bytes_.Int();
  }
  return v;
}

}  // namespace octavo::fuzz
