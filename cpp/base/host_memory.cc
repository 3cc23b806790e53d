#include "base/host_memory.h"

#include <sys/mman.h>

namespace octavo {
namespace {

// Anonymous maps are zero, page aligned, and committed page by page on first touch.
class MappedMemory final : public HostMemory {
 public:
  void* Allocate(size_t bytes) override {
    if (bytes == 0) bytes = 1;
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
  }
  void Free(void* data, size_t bytes) override { munmap(data, bytes == 0 ? 1 : bytes); }
};

}  // namespace

HostMemory& SystemMemory() {
  static MappedMemory memory;
  return memory;
}

}  // namespace octavo
