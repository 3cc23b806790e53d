// Memory of the device for the tests of the kernels.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "cpu/tensor.h"
#include "doctest/doctest.h"

namespace octavo::cuda {

inline bool HasDevice() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}

// Device memory that lives as long as this.
class DeviceMemory {
 public:
  explicit DeviceMemory(int64_t bytes) : bytes_(static_cast<size_t>(std::max<int64_t>(bytes, 1))) {
    REQUIRE(cudaMalloc(&data_, bytes_) == cudaSuccess);
  }
  DeviceMemory(const void* from, int64_t bytes) : DeviceMemory(bytes) { Copy(from, bytes); }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  void Resize(int64_t bytes) {
    cudaFree(data_);
    bytes_ = static_cast<size_t>(bytes);
    REQUIRE(cudaMalloc(&data_, bytes_) == cudaSuccess);
  }
  void Copy(const void* from, int64_t bytes) {
    REQUIRE(cudaMemcpy(data_, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice) ==
            cudaSuccess);
  }
  void Fill(int value) { REQUIRE(cudaMemset(data_, value, bytes_) == cudaSuccess); }
  std::vector<unsigned char> Bytes() const {
    std::vector<unsigned char> bytes(bytes_);
    REQUIRE(cudaMemcpy(bytes.data(), data_, bytes_, cudaMemcpyDeviceToHost) == cudaSuccess);
    return bytes;
  }
  void* data() const { return data_; }
  int64_t size() const { return static_cast<int64_t>(bytes_); }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// A host tensor's bytes on the device, and a view of them like the tensor's.
class OnDevice {
 public:
  OnDevice(const TensorView& view, const void* bytes, size_t size)
      : memory_(bytes, static_cast<int64_t>(size)), view_(view), size_(size) {
    view_.data = memory_.data();
  }
  explicit OnDevice(const cpu::Tensor& t)
      : OnDevice(t.view(), t.bytes().data(), t.bytes().size()) {}
  template <typename T>
  explicit OnDevice(std::vector<T>& v) : OnDevice(cpu::Column(v), v.data(), v.size() * sizeof(T)) {}

  const TensorView& view() const { return view_; }

  std::vector<unsigned char> Bytes() const {
    std::vector<unsigned char> bytes = memory_.Bytes();
    bytes.resize(size_);
    return bytes;
  }
  // Puts what the device holds into a tensor of the same layout.
  void FetchTo(cpu::Tensor* t) const {
    const std::vector<unsigned char> bytes = Bytes();
    std::copy(bytes.begin(), bytes.end(), t->view().ptr<unsigned char>());
  }
  template <typename T>
  std::vector<T> Column() const {
    const std::vector<unsigned char> bytes = Bytes();
    std::vector<T> v(bytes.size() / sizeof(T));
    memcpy(v.data(), bytes.data(), bytes.size());
    return v;
  }

 private:
  DeviceMemory memory_;
  TensorView view_;
  size_t size_;
};

inline void CheckDone(const Status& s) {
  INFO(s.message());
  CHECK(s.ok());
}

// Whether the device has come to the end of what it was given without a fault.
inline bool DeviceFinishes() { return cudaDeviceSynchronize() == cudaSuccess; }

}  // namespace octavo::cuda
