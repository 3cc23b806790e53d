#include "engine/counting_new.h"

#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

namespace octavo::engine {
namespace {

thread_local bool counting = false;
thread_local int64_t allocations = 0;
thread_local int64_t held = 0;
thread_local int64_t until_failure = 0;  // 0: none fails
thread_local bool failing_sticks = false;
thread_local int64_t refused_allocations = 0;

bool Refuses() {
  if (until_failure == 0 || --until_failure > 0) return false;
  if (failing_sticks) until_failure = 1;
  ++refused_allocations;
  return true;
}

// Null: refused.
void* TryAllocate(size_t bytes, size_t alignment) {
  if (counting) ++allocations;
  if (Refuses()) return nullptr;
  ++held;
  // aligned_alloc wants a multiple of the alignment.
  void* p = alignment <= alignof(std::max_align_t)
                ? std::malloc(bytes)
                : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!p) std::abort();
  return p;
}

void* Allocate(size_t bytes, size_t alignment) {
  void* const p = TryAllocate(bytes, alignment);
  if (!p) throw std::bad_alloc();
  return p;
}

void Free(void* p) {
  if (p) --held;
  std::free(p);
}

}  // namespace

CountAllocations::CountAllocations() {
  counting = true;
  allocations = 0;
}
CountAllocations::~CountAllocations() { counting = false; }
int64_t CountAllocations::count() const { return allocations; }

FailAllocations::FailAllocations(int64_t k, bool sticky) {
  until_failure = k;
  failing_sticks = sticky;
  refused_allocations = 0;
}
FailAllocations::~FailAllocations() { until_failure = 0; }
int64_t FailAllocations::refused() const { return refused_allocations; }

SpareAllocations::SpareAllocations()
    : counting_(std::exchange(counting, false)), until_failure_(std::exchange(until_failure, 0)) {}
SpareAllocations::~SpareAllocations() {
  counting = counting_;
  until_failure = until_failure_;
}

int64_t HeldAllocations() { return held; }

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
  return octavo::engine::TryAllocate(bytes, 1);
}
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept {
  return octavo::engine::TryAllocate(bytes, 1);
}
void operator delete(void* p) noexcept { octavo::engine::Free(p); }
void operator delete[](void* p) noexcept { octavo::engine::Free(p); }
void operator delete(void* p, size_t) noexcept { octavo::engine::Free(p); }
void operator delete[](void* p, size_t) noexcept { octavo::engine::Free(p); }
void operator delete(void* p, std::align_val_t) noexcept { octavo::engine::Free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { octavo::engine::Free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { octavo::engine::Free(p); }
void operator delete[](void* p, size_t, std::align_val_t) noexcept { octavo::engine::Free(p); }
