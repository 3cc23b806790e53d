#include "transfer/run_list.h"

#include <doctest/doctest.h>

namespace octavo::transfer {
namespace {

TEST_CASE("neighbours on both sides are one run, whichever way they come") {
  RunList list(4);
  CHECK(list.Add({100, 20, 10}));
  CHECK(list.Add({110, 30, 10}));
  CHECK(list.Add({90, 10, 10}));
  REQUIRE(list.runs().size() == 1);
  CHECK(list.runs()[0].pool == 90);
  CHECK(list.runs()[0].host == 10);
  CHECK(list.runs()[0].bytes == 30);
}

TEST_CASE("neighbours on one side alone are two runs") {
  RunList list(4);
  CHECK(list.Add({100, 20, 10}));
  CHECK(list.Add({110, 40, 10}));
  CHECK(list.Add({100, 50, 10}));
  CHECK(list.runs().size() == 3);
}

TEST_CASE("a full list takes what joins its last run, and nothing else") {
  RunList list(1);
  CHECK(list.Add({0, 0, 8}));
  CHECK(list.Add({8, 8, 8}));
  CHECK_FALSE(list.Add({64, 64, 8}));
  CHECK(list.runs()[0].bytes == 16);
  list.Clear();
  CHECK(list.empty());
  CHECK(list.Add({64, 64, 8}));
}

}  // namespace
}  // namespace octavo::transfer
