// Counts what this program takes from the heap. octavo-bench replaces operator new for it.
#pragma once

#include <cstdint>

namespace octavo::tools {

// Allocations since the program began, by any thread.
int64_t HeapAllocations();

}  // namespace octavo::tools
