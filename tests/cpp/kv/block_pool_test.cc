#include "kv/block_pool.h"

#include <algorithm>
#include <deque>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "kv/take.h"

namespace octavo::kv {
namespace {

using enum EvictionClass;

TEST_CASE("a new pool gives its blocks in order and never the null block") {
  BlockPool pool(4);
  CHECK(pool.free_parents() == 3);
  CHECK(pool.refs(kNullBlock) == 1);
  for (int32_t expected : {1, 2, 3}) CHECK(Index(Take(pool)) == expected);
  CHECK(pool.free_parents() == 0);
}

TEST_CASE("a block becomes free with its last reference") {
  BlockPool pool(3);
  const BlockId b = Take(pool);
  pool.Ref(b);
  pool.Unref(b);
  CHECK(pool.refs(b) == 1);
  CHECK(pool.free_parents() == 1);
  pool.Unref(b);
  CHECK(pool.free_parents() == 2);
}

TEST_CASE("free blocks of one class are given away least recently used first") {
  BlockPool pool(5);
  std::vector<BlockId> taken;
  for (int i = 0; i < 4; ++i) taken.push_back(Take(pool));
  for (BlockId b : taken) pool.SetClass(b, kProven);
  for (int i : {2, 0, 3, 1}) pool.Unref(taken[i]);
  CHECK(pool.FreeParents(kProven) == std::vector<int32_t>{3, 1, 4, 2});
  CHECK(Index(Take(pool)) == 3);
}

TEST_CASE("of free blocks without content the latest is given away first") {
  BlockPool pool(5);
  std::vector<BlockId> taken;
  for (int i = 0; i < 4; ++i) taken.push_back(Take(pool));
  for (int i : {2, 0, 3, 1}) pool.Unref(taken[i]);
  CHECK(pool.FreeParents(kUnhashed) == std::vector<int32_t>{2, 4, 1, 3});
  CHECK(Index(Take(pool)) == 2);
}

TEST_CASE("unhashed blocks go first, then probationary ones, then proven ones") {
  BlockPool pool(5);
  pool.SetClass(BlockId{1}, kProven);
  pool.SetClass(BlockId{2}, kProbationary);
  pool.SetClass(BlockId{3}, kProbationary);
  std::vector<int32_t> order;
  while (pool.free_parents() > 0) order.push_back(Index(Take(pool)));
  CHECK(order == std::vector<int32_t>{4, 2, 3, 1});
}

TEST_CASE("proven blocks give way when they fill more than their share of the cached ones") {
  BlockPool pool(11);
  for (int32_t b = 1; b <= 9; ++b) pool.SetClass(BlockId{b}, kProven);
  pool.SetClass(BlockId{10}, kProbationary);
  CHECK(Index(Take(pool)) == 1);   // 9 of 10 are proven
  CHECK(Index(Take(pool)) == 2);   // 8 of 9
  CHECK(Index(Take(pool)) == 3);   // 7 of 8
  CHECK(Index(Take(pool)) == 4);   // 6 of 7
  CHECK(Index(Take(pool)) == 5);   // 5 of 6
  CHECK(Index(Take(pool)) == 10);  // 4 of 5 are exactly the share
  CHECK(Index(Take(pool)) == 6);
}

TEST_CASE("low priorities go before ordinary blocks, high ones after, pinned ones last") {
  BlockPool pool(9);
  pool.SetClass(BlockId{1}, kPinned);
  pool.SetClass(BlockId{2}, ClassOf(36));
  pool.SetClass(BlockId{3}, ClassOf(99));
  pool.SetClass(BlockId{4}, ClassOf(34));
  pool.SetClass(BlockId{5}, ClassOf(0));
  pool.SetClass(BlockId{6}, kProven);
  pool.SetClass(BlockId{7}, kProbationary);
  std::vector<int32_t> order;
  while (pool.free_parents() > 0) order.push_back(Index(Take(pool)));
  CHECK(order == std::vector<int32_t>{8, 5, 4, 7, 6, 2, 3, 1});
}

TEST_CASE("what is pinned gives way when it fills more than its share, so that all can be taken") {
  BlockPool pool(11);
  for (int32_t b = 1; b <= 9; ++b) pool.SetClass(BlockId{b}, kPinned);
  pool.SetClass(BlockId{10}, kProbationary);
  std::vector<int32_t> order;
  while (pool.free_parents() > 0) order.push_back(Index(Take(pool)));
  CHECK(order == std::vector<int32_t>{1, 2, 3, 4, 5, 10, 6, 7, 8, 9});
}

TEST_CASE("a block that was hit is ordinarily proven, until it gets other content") {
  BlockPool pool(3);
  const BlockId b = Take(pool);
  pool.SetClass(b, ClassOf(80));
  CHECK(pool.OrdinaryClass(b) == kProbationary);
  pool.Prove(b);
  CHECK(pool.eviction_class(b) == ClassOf(80));
  CHECK(pool.OrdinaryClass(b) == kProven);
  pool.Unref(b);
  Take(pool);  // the other block, which is empty
  CHECK(Take(pool) == b);
  CHECK(pool.OrdinaryClass(b) == kProbationary);
}

TEST_CASE("a reference revives a free block wherever it stands in its list") {
  BlockPool pool(5);
  pool.Ref(BlockId{2});
  CHECK(pool.refs(BlockId{2}) == 1);
  CHECK(pool.FreeParents(kUnhashed) == std::vector<int32_t>{1, 3, 4});
}

TEST_CASE("a free block that changes class is the latest of the new one") {
  BlockPool pool(5);
  pool.SetClass(BlockId{3}, kProbationary);
  pool.SetClass(BlockId{1}, kProbationary);
  CHECK(pool.FreeParents(kProbationary) == std::vector<int32_t>{3, 1});
  pool.SetClass(BlockId{3}, kUnhashed);
  CHECK(pool.FreeParents(kUnhashed) == std::vector<int32_t>{3, 2, 4});
}

TEST_CASE("a used block returns to the class that it was given while it was used") {
  BlockPool pool(3);
  const BlockId b = Take(pool);
  pool.SetClass(b, kProven);
  CHECK(pool.free_parents(kProven) == 0);
  pool.Unref(b);
  CHECK(pool.free_parents(kProven) == 1);
}

// The same pool as lists that are searched.
struct NaivePool {
  explicit NaivePool(int32_t n) : refs(n), cls(n, 0) {
    for (int32_t b = 1; b < n; ++b) lists[0].push_back(b);
  }
  int32_t Take() {
    int c = 0;
    while (lists[c].empty()) ++c;
    if (c == int(kProbationary)) {
      double above = 0;
      for (int i = c + 1; i < kEvictionClasses; ++i) above += double(lists[i].size());
      if (above > BlockPool::kProvenShare * (above + double(lists[c].size()))) {
        do ++c;
        while (lists[c].empty());
      }
    }
    const int32_t b = lists[c].front();
    lists[c].pop_front();
    refs[b] = 1;
    cls[b] = 0;  // its content is gone
    return b;
  }
  void Ref(int32_t b) {
    if (refs[b]++ == 0) std::erase(lists[cls[b]], b);
  }
  void Unref(int32_t b) {
    if (--refs[b] == 0) GiveBack(b);
  }
  void UnrefReversed(const std::vector<int32_t>& row) {
    for (size_t i = row.size(); i-- > 0;) {
      if (row[i] != 0) Unref(row[i]);
    }
  }
  void GiveBack(int32_t b) {
    if (cls[b] == 0) {
      lists[0].push_front(b);
    } else {
      lists[cls[b]].push_back(b);
    }
  }
  void SetClass(int32_t b, int c) {
    if (cls[b] == c) return;
    if (refs[b] == 0) std::erase(lists[cls[b]], b);
    cls[b] = c;
    if (refs[b] == 0) GiveBack(b);
  }
  std::vector<int32_t> refs;
  std::vector<int> cls;
  std::deque<int32_t> lists[kEvictionClasses];
};

TEST_CASE("under random operations the pool equals one made of plain lists") {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const int32_t n = 2 + int32_t(random() % 20);
    BlockPool pool(n);
    NaivePool naive(n);
    for (int step = 0; step < 500; ++step) {
      const int32_t b = 1 + int32_t(random() % (n - 1));
      switch (random() % 5) {
        case 0:
          if (pool.free_parents() > 0) REQUIRE(Index(Take(pool)) == naive.Take());
          break;
        case 1:
          pool.Ref(BlockId{b});
          naive.Ref(b);
          break;
        case 2:
          if (naive.refs[b] > 0) {
            pool.Unref(BlockId{b});
            naive.Unref(b);
          }
          break;
        case 3: {
          // A sequence's blocks, some of them of other classes, in part held by others.
          std::vector<int32_t> row;
          for (int32_t at = 1; at < n; ++at) {
            if (naive.refs[at] > 0 && random() % 2 == 0) row.push_back(at);
            if (random() % 8 == 0) row.push_back(0);
          }
          std::shuffle(row.begin(), row.end(), random);
          pool.UnrefReversed(row, 0);
          naive.UnrefReversed(row);
          break;
        }
        default: {
          const int c = int(kSomeClasses[random() % std::size(kSomeClasses)]);
          pool.SetClass(BlockId{b}, EvictionClass(c));
          naive.SetClass(b, c);
        }
      }
      for (int c = 0; c < kEvictionClasses; ++c) {
        const std::vector<int32_t> expected(naive.lists[c].begin(), naive.lists[c].end());
        REQUIRE(pool.FreeParents(EvictionClass(c)) == expected);
      }
      pool.CheckInvariants();
    }
  }
}

}  // namespace
}  // namespace octavo::kv
