#include <cstdint>

#include "doctest/doctest.h"
#include "kv/expiry_wheel.h"

namespace octavo::kv {
namespace {

TEST_CASE("a clock that jumps far asks a block that is held once, not for every second it missed") {
  ExpiryWheel wheel;
  wheel.Enable(8);
  wheel.Set(BlockId{3}, 5000);
  int64_t asked = 0;
  const auto held = [&](BlockId) { return ++asked, false; };
  const int64_t years = int64_t{100} * 365 * 86'400 * 1'000'000;
  wheel.Advance(years, held);
  CHECK(asked == 1);
  wheel.Advance(years + ExpiryWheel::kRetryMicros / 2, held);
  CHECK(asked == 1);
  wheel.Advance(years + 2 * ExpiryWheel::kRetryMicros, [&](BlockId) { return ++asked, true; });
  CHECK(asked == 2);
  CHECK(wheel.size() == 0);
}

}  // namespace
}  // namespace octavo::kv
