#include "cpu/scratch.h"

#include <cstdlib>

#include "base/check.h"

namespace octavo::cpu {
namespace {

constexpr int64_t kAlign = 64;

class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { std::free(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* Get(int64_t bytes) {
    if (bytes <= size_) return memory_;
    // A quarter more than asked: contexts grow token by token, the buffer should not.
    const int64_t size = (bytes + bytes / 4 + kAlign) / kAlign * kAlign;
    void* memory = std::aligned_alloc(kAlign, static_cast<size_t>(size));
    OCTAVO_CHECK(memory != nullptr, "no memory left for the scratch of an op");
    std::free(memory_);
    memory_ = memory;
    size_ = size;
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace

void* ThreadScratch(ScratchUse use, int64_t bytes) {
  thread_local Buffer buffers[3];
  return buffers[static_cast<int>(use)].Get(bytes);
}

}  // namespace octavo::cpu
