// What the core does when memory runs out (ADR 21).
//
// std::bad_alloc, and OutOfMemory where the memory's purpose is known, may fly inside cpp/: out of
// constructors and out of what runs before a call changes anything. OrOutOfMemory stands around the
// engine's calls and makes a Status of it. The step path throws nothing: it reserves with
// TryReserve and does without what it cannot have.
#pragma once

#include <cstddef>
#include <new>
#include <utility>
#include <vector>

#include "octavo/status.h"

namespace octavo {

// Says what the memory was for, how much it was and which option to lower. Allocates nothing.
class OutOfMemory final : public std::bad_alloc {
 public:
  OutOfMemory(const char* wanted, size_t bytes, const char* remedy) noexcept;
  const char* what() const noexcept override { return message_; }

 private:
  char message_[192];
};

// The one place in cpp/ that throws.
[[noreturn]] void ThrowOutOfMemory(const char* wanted, size_t bytes, const char* remedy);

// kResourceExhausted with this message, or a short one when there is no memory for the message.
Status OutOfMemoryStatus(const char* message) noexcept;

// Runs a call that has changed nothing as long as it throws. `message`: for memory of no name.
template <typename Call>
auto OrOutOfMemory(const char* message, Call&& call) noexcept -> decltype(call()) {
  try {
    return call();
  } catch (const OutOfMemory& e) {
    return OutOfMemoryStatus(e.what());
  } catch (const std::bad_alloc&) {
    return OutOfMemoryStatus(message);
  }
}

// False, and no change, when there is no memory for so many elements.
template <typename T>
bool TryReserve(std::vector<T>& vector, size_t count) noexcept {
  try {
    vector.reserve(count);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

// A vector of `count` equal elements. Throws OutOfMemory.
template <typename T>
std::vector<T> TakeVector(size_t count, const char* wanted, const char* remedy,
                          const T& value = T{}) {
  try {
    return std::vector<T>(count, value);
  } catch (const std::bad_alloc&) {
    ThrowOutOfMemory(wanted, count * sizeof(T), remedy);
  }
}

}  // namespace octavo
