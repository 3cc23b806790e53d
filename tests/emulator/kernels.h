// The kernels that have been launched, and how each is called.
#pragma once

#include <cstddef>
#include <typeinfo>

namespace octavo::emulator {

using Invoke = void (*)(const void* kernel, const void* params);

// Idempotent. `type` is the mangled name of the parameters' type, which names the kernel in
// messages.
void NoteKernel(const void* kernel, Invoke invoke, size_t params_bytes, const char* type);

}  // namespace octavo::emulator
