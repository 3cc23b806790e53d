// VirtualClock: time that passes only when somebody says so.
#pragma once

#include <cstdint>

#include "octavo/executor.h"

namespace octavo::sim {

class VirtualClock final : public Clock {
 public:
  int64_t NowMicros() override { return now_us; }
  int64_t now_us = 1'000'000;
};

}  // namespace octavo::sim
