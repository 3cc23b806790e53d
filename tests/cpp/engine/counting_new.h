// Counts heap allocations of this thread while a CountAllocations lives. The test program replaces
// operator new for it (counting_new.cc).
#pragma once

#include <cstdint>

namespace octavo::engine {

class CountAllocations {
 public:
  CountAllocations();
  ~CountAllocations();
  int64_t count() const;
};

}  // namespace octavo::engine
