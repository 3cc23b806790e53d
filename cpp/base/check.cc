#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace octavo {

void CheckFailed(const char* file, int line, const char* condition, const char* message) {
  std::fprintf(stderr, "octavo: %s:%d: check failed: %s (%s)\n", file, line, condition, message);
  std::abort();
}

}  // namespace octavo
