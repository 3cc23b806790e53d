#include "sched/request.h"

#include <memory>
#include <random>
#include <vector>

#include "doctest/doctest.h"

namespace octavo::sched {
namespace {

TEST_CASE("tokens that wait beside the hot line are all in their places once somebody reads them") {
  constexpr int32_t kLength = 400;
  for (uint32_t seed = 1; seed <= 100; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    auto r = std::make_unique<Request>();
    r->storage = std::make_unique<int32_t[]>(kLength);
    r->tokens = r->storage.get();
    std::vector<int32_t> expected;
    while (int32_t(expected.size()) < kLength) {
      const int32_t token = int32_t(random() % 1000) + 1;
      r->Append(token);
      expected.push_back(token);
      REQUIRE(r->last_token == token);
      // A row of it is planned, or not yet; somebody reads them, or goes on without.
      if (random() % 4 > 0) r->Stash();
      if (random() % 60 > 0) continue;
      r->Flush();
      REQUIRE(std::vector<int32_t>(r->tokens, r->tokens + r->num_tokens) == expected);
    }
    r->Flush();
    REQUIRE(std::vector<int32_t>(r->tokens, r->tokens + kLength) == expected);
  }
}

}  // namespace
}  // namespace octavo::sched
