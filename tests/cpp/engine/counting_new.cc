#include "engine/counting_new.h"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace octavo::engine {
namespace {

thread_local bool counting = false;
thread_local int64_t allocations = 0;

void* Allocate(size_t bytes, size_t alignment) {
  if (counting) ++allocations;
  // aligned_alloc wants a multiple of the alignment.
  void* p = alignment <= alignof(std::max_align_t)
                ? std::malloc(bytes)
                : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!p) std::abort();
  return p;
}

}  // namespace

CountAllocations::CountAllocations() {
  counting = true;
  allocations = 0;
}
CountAllocations::~CountAllocations() { counting = false; }
int64_t CountAllocations::count() const { return allocations; }

}  // namespace octavo::engine

void* operator new(size_t bytes) { return octavo::engine::Allocate(bytes, 1); }
void* operator new[](size_t bytes) { return octavo::engine::Allocate(bytes, 1); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return octavo::engine::Allocate(bytes, size_t(alignment));
}
void* operator new[](size_t bytes, std::align_val_t alignment) {
  return octavo::engine::Allocate(bytes, size_t(alignment));
}
// std::stable_sort takes its buffer from this one and gives it back through the plain delete.
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return octavo::engine::Allocate(bytes, 1);
}
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept {
  return octavo::engine::Allocate(bytes, 1);
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { std::free(p); }
