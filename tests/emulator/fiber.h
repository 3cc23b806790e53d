// A stack that can be left and entered again: a CUDA thread of the emulator.
//
// The first entry is ucontext's; every later switch is _setjmp and _longjmp, which leave the signal
// mask alone and therefore cost some ten nanoseconds without a system call. A fiber stays on the
// operating system's thread that created it.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>

namespace octavo::emulator {

class Fiber {
 public:
  // The stack that is running: only to be left and come back to.
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Begins `entry` on the given stack when it is entered next. `entry` never returns.
  void Start(void* stack, size_t bytes, void (*entry)());
  // Leaves this fiber, which is the running one, for another.
  void SwitchTo(Fiber* other);
  // Enters this fiber and forgets the running one.
  [[noreturn]] void Enter();

 private:
  jmp_buf where_{};
  ucontext_t first_{};
  bool fresh_ = false;
};

}  // namespace octavo::emulator
