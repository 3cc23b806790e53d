// Host tensors of the tests' kind with a copy on the device.
#pragma once

#include "device.h"

namespace octavo::cuda {

// The bytes of a host tensor or column in device memory, and a view of them like the host's. What
// an op writes there is brought back by Fetch.
class DeviceCopy {
 public:
  explicit DeviceCopy(const cpu::Tensor& t)
      : DeviceCopy(t.view(), static_cast<int64_t>(t.bytes().size())) {}
  template <typename T>
  explicit DeviceCopy(std::vector<T>& column)
      : DeviceCopy(cpu::Column(column), static_cast<int64_t>(column.size() * sizeof(T))) {}
  // A dense table of int32 in `memory`.
  DeviceCopy(std::vector<int32_t>& memory, int64_t rows, int64_t columns)
      : DeviceCopy(TensorView::Dense(memory.data(), DType::kI32, {rows, columns}),
                   rows * columns * 4) {}

  const TensorView& host() const { return host_; }
  const TensorView& view() const { return view_; }

  // Waits for the device, then overwrites the host's bytes by the device's.
  void Fetch() {
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    const std::vector<unsigned char> bytes = memory_.Bytes();
    std::copy_n(bytes.begin(), size_, host_.ptr<unsigned char>());
  }

 private:
  DeviceCopy(const TensorView& view, int64_t bytes)
      : host_(view), view_(view), memory_(bytes), size_(bytes) {
    if (bytes > 0) memory_.Copy(view.data, bytes);
    view_.data = memory_.data();
  }

  TensorView host_, view_;
  DeviceMemory memory_;
  int64_t size_;
};

// As cpu::Close, for two results that have both been rounded.
inline bool Alike(DType dtype, double got, double want, double magnitude) {
  return cpu::Close(dtype, (got + want) / 2, want, magnitude / 2);
}

inline void RequireOk(const Status& status) {
  INFO(status.message());
  REQUIRE(status.ok());
}

}  // namespace octavo::cuda
