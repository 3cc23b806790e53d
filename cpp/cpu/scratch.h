// Memory that an op needs for the length of a call or a task: one buffer per thread and purpose,
// which only grows.
#pragma once

#include <cstdint>

namespace octavo::cpu {

// A call's own tables live beside the tasks that the calling thread then runs, hence several
// purposes.
enum class ScratchUse { kPlan, kCall, kTask };

// At least `bytes`, aligned to 64, contents undefined; valid until this thread asks again for the
// same use.
void* ThreadScratch(ScratchUse use, int64_t bytes);

}  // namespace octavo::cpu
