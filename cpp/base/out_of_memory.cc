#include "base/out_of_memory.h"

#include <cstdio>

namespace octavo {

OutOfMemory::OutOfMemory(const char* wanted, size_t bytes, const char* remedy) noexcept {
  std::snprintf(message_, sizeof message_, "no memory for %s (%zu bytes): %s", wanted, bytes,
                remedy);
}

void ThrowOutOfMemory(const char* wanted, size_t bytes, const char* remedy) {
  throw OutOfMemory(wanted, bytes, remedy);
}

Status OutOfMemoryStatus(const char* message) noexcept {
  try {
    return Status::ResourceExhausted(message);
  } catch (const std::bad_alloc&) {
    return Status::ResourceExhausted("out of memory");  // short enough to need none itself
  }
}

}  // namespace octavo
