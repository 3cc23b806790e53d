#include "base/clock.h"

#include <chrono>

namespace octavo {
namespace {

class Steady final : public Clock {
 public:
  int64_t NowMicros() override {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::microseconds>(now).count();
  }
};

}  // namespace

Clock& SteadyClock() {
  static Steady clock;
  return clock;
}

}  // namespace octavo
