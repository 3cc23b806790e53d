#include "sched/ngram.h"

#include <algorithm>
#include <random>
#include <vector>

#include "doctest/doctest.h"

namespace octavo::sched {
namespace {

int32_t Find(const std::vector<int32_t>& tokens, int32_t shortest, int32_t longest) {
  return FindContinuation(tokens.data(), int32_t(tokens.size()), shortest, longest);
}

// Every end of every length, longest first, then latest first.
int32_t Naive(const std::vector<int32_t>& tokens, int32_t shortest, int32_t longest) {
  const int32_t n = int32_t(tokens.size());
  for (int32_t length = longest; length >= shortest; --length) {
    for (int32_t end = n - 1; end >= length && n >= length; --end) {
      if (std::equal(tokens.end() - length, tokens.end(), tokens.begin() + end - length)) {
        return end;
      }
    }
  }
  return -1;
}

TEST_CASE("a lookup equals a search of every length at every place") {
  std::mt19937 random(3);
  int found = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::vector<int32_t> tokens(1 + random() % 30);
    for (int32_t& token : tokens) token = int32_t(random() % 3);
    const int32_t longest = 1 + int32_t(random() % 6);
    const int32_t shortest = 1 + int32_t(random() % longest);
    CAPTURE(round);
    const int32_t at = Find(tokens, shortest, longest);
    REQUIRE(at == Naive(tokens, shortest, longest));
    found += at >= 0;
  }
  CHECK(found > 1000);
}

TEST_CASE("a lookup goes no further back than its bound") {
  std::vector<int32_t> tokens(kLookupTokens + 100, 0);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = int32_t(i);
  tokens.back() = 50;
  CHECK(Find(tokens, 1, 1) == -1);
  tokens.back() = 150;
  CHECK(Find(tokens, 1, 1) == 151);
}

}  // namespace
}  // namespace octavo::sched
