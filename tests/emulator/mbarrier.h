// What lands by itself reports to barriers in shared memory by these.
#pragma once

#include <cstdint>

#include "emulator/cta.h"

namespace octavo::emulator {

// The barrier's bytes; ends the kernel if it was not initialised.
unsigned char* FindMbarrier(uint32_t address, Where where);
// Bytes have landed that a phase waits for.
void CompleteBytes(unsigned char* mbarrier, int bytes);

}  // namespace octavo::emulator
