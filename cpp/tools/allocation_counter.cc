#include "tools/allocation_counter.h"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace octavo::tools {
namespace {

std::atomic<int64_t> allocations{0};

void* Allocate(size_t bytes, size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  // aligned_alloc wants a multiple of the alignment.
  void* p = alignment <= alignof(std::max_align_t)
                ? std::malloc(bytes)
                : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!p) std::abort();
  return p;
}

}  // namespace

int64_t HeapAllocations() { return allocations.load(std::memory_order_relaxed); }

}  // namespace octavo::tools

void* operator new(size_t bytes) { return octavo::tools::Allocate(bytes, 1); }
void* operator new[](size_t bytes) { return octavo::tools::Allocate(bytes, 1); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return octavo::tools::Allocate(bytes, size_t(alignment));
}
void* operator new[](size_t bytes, std::align_val_t alignment) {
  return octavo::tools::Allocate(bytes, size_t(alignment));
}
// std::stable_sort takes its buffer from these and gives it back through the plain delete.
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return octavo::tools::Allocate(bytes, 1);
}
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept {
  return octavo::tools::Allocate(bytes, 1);
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { std::free(p); }
