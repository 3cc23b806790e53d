// OCTAVO_CHECK: an invariant of our own code. Always on; aborts with place and message, because
// going on with a broken block table would answer one user with another user's tokens.
#pragma once

namespace octavo {

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const char* message);

}  // namespace octavo

#define OCTAVO_CHECK(cond, msg)                              \
  do {                                                       \
    if (!(cond)) [[unlikely]]                                \
      ::octavo::CheckFailed(__FILE__, __LINE__, #cond, msg); \
  } while (0)
