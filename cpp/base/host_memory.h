// HostMemory: where the core's large arrays live. A device runtime implements it with pinned
// memory, so that columns and block tables can be copied without staging; the default is plain
// zeroed memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/out_of_memory.h"

namespace octavo {

class HostMemory {
 public:
  virtual ~HostMemory() = default;
  // Zeroed and aligned to a cache line, or null when there is none. Pages nobody touches cost
  // nothing.
  virtual void* Allocate(size_t bytes) = 0;
  virtual void Free(void* data, size_t bytes) = 0;
};

// The process's own memory; lives for ever.
HostMemory& SystemMemory();

// Asks for large pages where the system has them on request: for arrays that are read all over, and
// mostly touched in time, a look-up then costs no walk through page tables.
void PreferLargePages(void* data, size_t bytes);

// An owned array in a HostMemory.
template <typename T>
class HostArray {
 public:
  HostArray() = default;
  HostArray(HostMemory& memory, size_t count)
      : memory_(&memory),
        data_(static_cast<T*>(memory.Allocate(count * sizeof(T)))),
        count_(data_ ? count : 0) {}
  ~HostArray() { reset(); }
  HostArray(HostArray&& other) noexcept { *this = std::move(other); }
  HostArray& operator=(HostArray&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  HostArray(const HostArray&) = delete;
  HostArray& operator=(const HostArray&) = delete;

  void reset() {
    if (data_) memory_->Free(data_, count_ * sizeof(T));
    data_ = nullptr;
    count_ = 0;
  }
  T* data() const { return data_; }
  size_t size() const { return count_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  HostMemory* memory_ = nullptr;
  T* data_ = nullptr;
  size_t count_ = 0;
};

// An array that its owner cannot do without. Throws OutOfMemory.
template <typename T>
HostArray<T> TakeArray(HostMemory& memory, size_t count, const char* wanted, const char* remedy) {
  HostArray<T> array(memory, count);
  if (!array.data()) ThrowOutOfMemory(wanted, count * sizeof(T), remedy);
  return array;
}

}  // namespace octavo
