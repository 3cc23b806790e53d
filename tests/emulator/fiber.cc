// A fortified longjmp takes a jump to another stack for a mistake.
#undef _FORTIFY_SOURCE
#include "emulator/fiber.h"

#include <cstdlib>

namespace octavo::emulator {

void Fiber::Start(void* stack, size_t bytes, void (*entry)()) {
  if (getcontext(&first_) != 0) std::abort();
  first_.uc_stack.ss_sp = stack;
  first_.uc_stack.ss_size = bytes;
  first_.uc_link = nullptr;
  makecontext(&first_, entry, 0);
  fresh_ = true;
}

__attribute__((noinline)) void Fiber::SwitchTo(Fiber* other) {
  if (_setjmp(where_) == 0) other->Enter();
}

void Fiber::Enter() {
  if (fresh_) {
    fresh_ = false;
    setcontext(&first_);
  }
  _longjmp(where_, 1);
}

}  // namespace octavo::emulator
