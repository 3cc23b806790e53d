#include "base/host_memory.h"

#include <sys/mman.h>

#include <cstdint>

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

void PreferLargePages(void* data, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 4096;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  // A wish only: whether it is granted changes nothing but the speed.
  if (first < end) (void)madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

HostMemory& SystemMemory() {
  static MappedMemory memory;
  return memory;
}

}  // namespace octavo
