#include "kv/expiry_wheel.h"

#include <map>
#include <random>
#include <vector>

#include "doctest/doctest.h"

namespace octavo::kv {
namespace {

constexpr int64_t kTick = ExpiryWheel::kTickMicros;

std::vector<int32_t> Due(ExpiryWheel& wheel, int64_t now_us) {
  std::vector<int32_t> due;
  wheel.Advance(now_us, [&](BlockId b) {
    due.push_back(Index(b));
    return true;
  });
  return due;
}

using Blocks = std::vector<int32_t>;

TEST_CASE("a block is due when its time is over, not before") {
  ExpiryWheel wheel;
  wheel.Enable(10);
  CHECK(Due(wheel, 1'000'000'000).empty());
  wheel.Set(BlockId{3}, 100 * kTick);
  CHECK(Due(wheel, 1'000'000'000 + 98 * kTick).empty());
  CHECK(Due(wheel, 1'000'000'000 + 101 * kTick) == Blocks{3});
  CHECK(wheel.size() == 0);
}

TEST_CASE("cancelled blocks are never due, restarted ones later") {
  ExpiryWheel wheel;
  wheel.Enable(10);
  for (int32_t b = 1; b <= 3; ++b) wheel.Set(BlockId{b}, 10 * kTick);
  wheel.Cancel(BlockId{2});
  wheel.Cancel(BlockId{2});
  CHECK(Due(wheel, 5 * kTick).empty());
  wheel.Restart(BlockId{1});
  wheel.Restart(BlockId{2});
  CHECK(Due(wheel, 12 * kTick) == Blocks{3});
  CHECK(Due(wheel, 20 * kTick) == Blocks{1});
}

TEST_CASE("what is let go of between two steps counts from then") {
  ExpiryWheel wheel;
  wheel.Enable(10);
  Due(wheel, 100 * kTick);
  for (int32_t b : {1, 2}) wheel.Set(BlockId{b}, 10 * kTick);
  wheel.Restart(BlockId{1}, 150 * kTick);
  wheel.Restart(BlockId{2}, 50 * kTick);  // not before the latest step
  CHECK(Due(wheel, 110 * kTick) == Blocks{2});
  CHECK(Due(wheel, 159 * kTick).empty());
  CHECK(Due(wheel, 160 * kTick) == Blocks{1});
}

TEST_CASE("a block that is still wanted comes round again, after a second at least") {
  ExpiryWheel wheel;
  wheel.Enable(10);
  wheel.Set(BlockId{1}, kTick);
  int asked = 0;
  const auto refuse = [&](BlockId) { return ++asked > 1; };
  wheel.Advance(2 * kTick, refuse);
  CHECK(asked == 1);
  wheel.Advance(ExpiryWheel::kRetryMicros, refuse);
  CHECK(asked == 1);
  wheel.Advance(ExpiryWheel::kRetryMicros + 4 * kTick, refuse);
  CHECK(asked == 2);
  CHECK(wheel.size() == 0);
}

TEST_CASE("under random times the wheel equals a sorted list") {
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    ExpiryWheel wheel;
    wheel.Enable(40);
    std::map<int32_t, int64_t> due;  // in ticks
    int64_t now = int64_t(random() % (uint64_t{1} << (seed % 62)));
    CHECK(Due(wheel, now).empty());
    for (int turn = 0; turn < 400; ++turn) {
      const int32_t block = int32_t(random() % 40);
      const int64_t duration = int64_t(random() % (uint64_t{1} << (1 + random() % 40)));
      switch (random() % 4) {
        case 0:
          wheel.Cancel(BlockId{block});
          due.erase(block);
          break;
        case 1:
          now += duration;
          for (int32_t b : Due(wheel, now)) {
            REQUIRE(due.at(b) <= now / kTick);
            due.erase(b);
          }
          for (const auto& [b, when] : due) REQUIRE(when > now / kTick);
          break;
        default:
          wheel.Set(BlockId{block}, duration);
          due[block] = now / kTick + std::max<int64_t>(1, (duration + kTick - 1) / kTick);
      }
      REQUIRE(wheel.size() == int32_t(due.size()));
    }
  }
}

}  // namespace
}  // namespace octavo::kv
