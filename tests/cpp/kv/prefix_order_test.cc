#include "kv/prefix_order.h"

#include <algorithm>
#include <random>
#include <tuple>
#include <vector>

#include "doctest/doctest.h"
#include "kv/chain.h"

namespace octavo::kv {
namespace {

using Prefix = SharedBlocks::Prefix;

// Rows in slots 0, 1 and so on; a new version each time.
std::vector<int32_t> OrderOf(PrefixOrder& order, const std::vector<Prefix>& prefixes) {
  static uint64_t version = 0;
  const auto got = order.Of(Count(0, int32_t(prefixes.size())), ++version, [&](RowSlot slot) {
    return prefixes[static_cast<size_t>(Index(slot))];
  });
  return {got.begin(), got.end()};
}

TEST_CASE("rows of one prefix stand where the first of them stood, and the others last") {
  PrefixOrder order(100, 8);
  const Prefix a{3, 3, 5}, b{9, 9, 5}, none;
  CHECK(OrderOf(order, {none, a, b, none, a, b, a}) == std::vector<int32_t>{1, 4, 6, 2, 5, 0, 3});
  CHECK(OrderOf(order, {b, a, none, b}) == std::vector<int32_t>{0, 3, 1, 2});
}

TEST_CASE("within a prefix rows that go on alike stand together, those that go furthest first") {
  PrefixOrder order(100, 8);
  const Prefix a{3, 3, 5}, a_long{3, 7, 9}, a_else{3, 8, 9}, b{9, 9, 5};
  CHECK(OrderOf(order, {a, b, a_long, a_else, a, a_long, b}) ==
        std::vector<int32_t>{2, 5, 3, 0, 4, 1, 6});
}

TEST_CASE("rows are left alone where no part of them is in pieces") {
  PrefixOrder order(100, 8);
  const Prefix a{3, 3, 5}, a_long{3, 7, 9}, b{9, 9, 5}, none;
  CHECK(OrderOf(order, {}).empty());
  CHECK(OrderOf(order, {none, none, none}).empty());
  CHECK(OrderOf(order, {a, a, a, a}).empty());
  CHECK(OrderOf(order, {b, b, a, a, none, none}).empty());
  CHECK(OrderOf(order, {none, none, a, a_long, a_long, b}).empty());
}

TEST_CASE("an order is kept for the same rows until their prefixes may be others") {
  PrefixOrder order(100, 8);
  int32_t asked = 0;
  const auto of = [&](const std::vector<int32_t>& slots, uint64_t version) {
    const auto got = order.Of(slots, version, [&](RowSlot slot) {
      ++asked;
      const int32_t block = 1 + Index(slot) % 2;
      return Prefix{block, block, 5};
    });
    return std::vector<int32_t>(got.begin(), got.end());
  };
  CHECK(of({4, 5, 6, 7}, 1) == std::vector<int32_t>{0, 2, 1, 3});
  CHECK(of({4, 5, 6, 7}, 1) == std::vector<int32_t>{0, 2, 1, 3});
  CHECK(asked == 4);
  CHECK(of({4, 6, 5, 7}, 1).empty());  // the same, but they came otherwise
  CHECK(asked == 8);
  CHECK(of({4, 6, 5}, 1).empty());
  CHECK(of({4, 6, 5}, 2).empty());
  CHECK(asked == 14);
}

TEST_CASE("under random prefixes the order is that of a stable sort of the rows") {
  constexpr int32_t kBlocks = 40;
  PrefixOrder order(kBlocks, 60);
  std::mt19937 random(5);
  const auto draw = [&](uint32_t end) { return int32_t(random() % end); };
  int32_t moved = 0;
  for (int32_t round = 0; round < 3000; ++round) {
    // Of few blocks, so that they recur in other parts and other rounds. A last block has one first
    // block, and is as deep in every row.
    const int32_t kinds = 1 + draw(kBlocks - 1);
    const int32_t trees = 1 + draw(4);
    std::vector<Prefix> prefixes(static_cast<size_t>(draw(61)));
    for (Prefix& p : prefixes) {
      p.last = draw(uint32_t(kinds) + 1);
      p.first = p.last == 0 ? 0 : std::min(kinds, 1 + p.last % trees);
      p.depth = p.last % 7;
    }
    const auto place = [&](size_t i, int32_t Prefix::* block) {
      const auto like = [&](const Prefix& p) { return p.*block == prefixes[i].*block; };
      return std::ranges::find_if(prefixes, like) - prefixes.begin();
    };
    std::vector<int32_t> expected = Count(0, int32_t(prefixes.size()));
    std::ranges::stable_sort(expected, {}, [&](int32_t row) {
      const auto i = static_cast<size_t>(row);
      const bool none = prefixes[i].first == 0;
      return std::tuple(none, place(i, &Prefix::first), -prefixes[i].depth,
                        place(i, &Prefix::last));
    });
    const auto pieces = [&](const std::vector<int32_t>& rows) {
      const auto last = [&](int32_t row) { return prefixes[size_t(row)].last; };
      int32_t count = 0;
      for (size_t i = 1; i < rows.size(); ++i) count += last(rows[i]) != last(rows[i - 1]);
      return count;
    };
    if (pieces(expected) == pieces(Count(0, int32_t(prefixes.size())))) expected.clear();
    REQUIRE(OrderOf(order, prefixes) == expected);
    moved += !expected.empty();
  }
  CHECK(moved > 2000);
}

}  // namespace
}  // namespace octavo::kv
