#include "encoder/encoder_cache.h"

#include <algorithm>
#include <list>
#include <map>
#include <random>
#include <vector>

#include "doctest/doctest.h"

namespace octavo::encoder {
namespace {

Hash128 H(uint64_t n) { return {n, n * 31}; }

std::vector<int32_t> TakeEvicted(EncoderCache& cache) {
  std::vector<int32_t> evicted(cache.evicted().begin(), cache.evicted().end());
  cache.ClearEvicted();
  return evicted;
}

TEST_CASE("an item is kept after its last use, until its room is needed") {
  EncoderCache cache(10);
  const int32_t a = cache.Insert(H(1), 4, 1);
  cache.Release(a);
  CHECK(cache.Find(H(1)) == a);
  CHECK(cache.available() == 10);
  const int32_t b = cache.Insert(H(2), 6, 2);
  CHECK(cache.Find(H(1)) == a);
  cache.Insert(H(3), 4, 3);
  CHECK(cache.Find(H(1)) == EncoderCache::kNone);
  CHECK(TakeEvicted(cache) == std::vector<int32_t>{a});
  CHECK(cache.Find(H(2)) == b);
  CHECK(cache.available() == 0);
  cache.CheckInvariants();
}

TEST_CASE("what was released longest ago goes first, and a use in between counts") {
  EncoderCache cache(3);
  const int32_t a = cache.Insert(H(1), 1, 1);
  const int32_t b = cache.Insert(H(2), 1, 1);
  const int32_t c = cache.Insert(H(3), 1, 1);
  cache.Release(b);
  cache.Release(a);
  cache.Release(c);
  cache.Use(b);
  cache.Release(b);
  cache.Insert(H(4), 2, 2);
  CHECK(TakeEvicted(cache) == std::vector<int32_t>{a, c});
  CHECK(cache.Find(H(2)) == b);
}

TEST_CASE("an item that was never encoded is not found, and goes with its last use") {
  EncoderCache cache(8);
  const int32_t a = cache.Insert(H(1), 4, 1);
  cache.Use(a);
  cache.Forget(a);
  CHECK(cache.Find(H(1)) == EncoderCache::kNone);
  const int32_t again = cache.Insert(H(1), 4, 2);
  CHECK(again != a);
  cache.Release(a);
  CHECK(cache.available() == 0);
  cache.Release(a);
  CHECK(cache.free() == 4);
  CHECK(cache.Find(H(1)) == again);
  cache.CheckInvariants();
}

TEST_CASE("clearing forgets what nobody uses") {
  EncoderCache cache(8);
  const int32_t used = cache.Insert(H(1), 4, 1);
  cache.Release(cache.Insert(H(2), 4, 1));
  cache.Clear();
  CHECK(cache.Find(H(1)) == used);
  CHECK(cache.Find(H(2)) == EncoderCache::kNone);
  CHECK(cache.free() == 4);
}

// The cache as a map and a list, searched.
struct Naive {
  struct Item {
    int32_t embeddings, uses, entry;
  };
  std::map<uint64_t, Item> items;
  std::list<uint64_t> released;
  int32_t free = 0;

  void MakeRoom(int32_t embeddings) {
    while (free < embeddings) {
      free += items[released.front()].embeddings;
      items.erase(released.front());
      released.pop_front();
    }
  }
};

TEST_CASE("under random operations the cache equals a map and a list") {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    std::mt19937 rng(seed);
    const int32_t capacity = 1 + int32_t(rng() % 40);
    EncoderCache cache(capacity);
    Naive naive;
    naive.free = capacity;
    INFO("seed ", seed);
    for (int op = 0; op < 2000; ++op) {
      const uint64_t key = rng() % 24;
      const int32_t size = 1 + int32_t(key % 7);
      const auto found = naive.items.find(key);
      const int32_t entry = cache.Find(H(key));
      REQUIRE((entry != EncoderCache::kNone) == (found != naive.items.end()));
      if (found == naive.items.end()) {
        int32_t available = naive.free;
        for (uint64_t r : naive.released) available += naive.items[r].embeddings;
        REQUIRE(cache.available() == available);
        if (size > available) continue;
        naive.MakeRoom(size);
        naive.free -= size;
        naive.items[key] = {size, 1, cache.Insert(H(key), size, uint64_t(op))};
      } else if (found->second.uses > 0 && rng() % 2 == 0) {
        cache.Release(entry);
        if (--found->second.uses == 0) naive.released.push_back(key);
      } else {
        cache.Use(entry);
        if (found->second.uses++ == 0) naive.released.remove(key);
      }
      REQUIRE(cache.free() == naive.free);
      REQUIRE(cache.size() == int32_t(naive.items.size()));
      for (const auto& [k, item] : naive.items) REQUIRE(cache.Find(H(k)) == item.entry);
      cache.CheckInvariants();
      cache.ClearEvicted();
    }
  }
}

}  // namespace
}  // namespace octavo::encoder
