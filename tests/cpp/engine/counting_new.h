// Counts heap allocations of this thread while a CountAllocations lives, and fails some while a
// FailAllocations does. The test program replaces operator new for it (counting_new.cc).
#pragma once

#include <cstdint>

namespace octavo::engine {

class CountAllocations {
 public:
  CountAllocations();
  ~CountAllocations();
  int64_t count() const;
};

// Fails this thread's k-th allocation from now on (k = 1: the next), and all after it when
// `sticky`. One at a time.
class FailAllocations {
 public:
  FailAllocations(int64_t k, bool sticky);
  ~FailAllocations();
  FailAllocations(const FailAllocations&) = delete;
  // How many were refused.
  int64_t refused() const;
};

// Neither counts nor fails what is allocated while one lives.
class SpareAllocations {
 public:
  SpareAllocations();
  ~SpareAllocations();
  SpareAllocations(const SpareAllocations&) = delete;

 private:
  bool counting_;
  int64_t until_failure_;
};

// What operator new has given this thread less what this thread has given back: equal numbers
// before and after something mean that it leaked nothing.
int64_t HeldAllocations();

}  // namespace octavo::engine
