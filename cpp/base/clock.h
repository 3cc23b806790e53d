// The clocks behind octavo::Clock.
#pragma once

#include <cstdint>

#include "octavo/executor.h"

namespace octavo {

// The system's steady clock; lives for ever.
Clock& SteadyClock();

}  // namespace octavo
