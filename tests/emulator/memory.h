// Device memory: every allocation ends, but for its alignment, at a page that nobody may touch.
// What lies between is filled with a pattern that is looked at when the memory is freed.
#pragma once

#include <cstddef>
#include <source_location>
#include <string>

namespace octavo::emulator {

class Cta;

// Null where the machine has no more. The memory begins as NaN.
void* AllocateDevice(size_t bytes);
// False where `p` is no allocation, or something wrote just beyond it.
bool FreeDevice(void* p);
// Ends the kernel if [p, p + bytes) is not part of one allocation.
void CheckDeviceRange(Cta& cta, const void* p, int bytes, int alignment,
                      std::source_location where);
// Which allocation an address lies in or next to, for a message.
std::string NearestDevice(const void* p);
// Lets what lies in host memory be read by asynchronous copies as well.
bool IsDevice(const void* p);

}  // namespace octavo::emulator
