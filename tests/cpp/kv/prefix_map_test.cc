#include "kv/prefix_map.h"

#include <map>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "doctest/doctest.h"

namespace octavo::kv {
namespace {

using Insert = PrefixMap::InsertResult;

constexpr int32_t kBlockSize = 2;

// A key whose hash is chosen, so that collisions and crowded places can be forced.
struct TestKey {
  uint64_t hash = 0;
  uint64_t parent = 0;
  int32_t group = 0;
  std::vector<int32_t> tokens;
  auto operator<=>(const TestKey&) const = default;
  PrefixKey key() const { return {{hash, hash}, {parent, parent}, group, tokens}; }
};

TEST_CASE("a filed block is found by its content until it is removed") {
  PrefixMap map(4, kBlockSize);
  const TestKey k{5, 1, 0, {10, 11}};
  CHECK(map.Find(k.key()) == kNoBlock);
  CHECK(map.Insert(BlockId{2}, k.key()) == Insert::kFirst);
  CHECK(map.Find(k.key()) == BlockId{2});
  CHECK(map.Contains(BlockId{2}));
  CHECK(map.Remove(BlockId{2}));
  CHECK(map.Find(k.key()) == kNoBlock);
  CHECK_FALSE(map.Contains(BlockId{2}));
  CHECK(map.size() == 0);
}

TEST_CASE("an equal hash with other tokens is no hit and is not filed") {
  PrefixMap map(4, kBlockSize);
  const TestKey mine{5, 1, 0, {10, 11}};
  const TestKey forged{5, 1, 0, {10, 12}};
  CHECK(map.Insert(BlockId{1}, mine.key()) == Insert::kFirst);
  CHECK(map.Find(forged.key()) == kNoBlock);
  CHECK(map.Insert(BlockId{2}, forged.key()) == Insert::kCollision);
  CHECK_FALSE(map.Contains(BlockId{2}));
  CHECK(map.Find(mine.key()) == BlockId{1});
}

TEST_CASE("an equal hash after another parent is no hit and is not filed") {
  PrefixMap map(4, kBlockSize);
  const TestKey mine{5, 1, 0, {10, 11}};
  const TestKey forged{5, 2, 0, {10, 11}};
  CHECK(map.Insert(BlockId{1}, mine.key()) == Insert::kFirst);
  CHECK(map.Find(forged.key()) == kNoBlock);
  CHECK(map.Insert(BlockId{2}, forged.key()) == Insert::kCollision);
}

TEST_CASE("groups hold the same content apart") {
  PrefixMap map(4, kBlockSize);
  const TestKey a{5, 1, 0, {10, 11}};
  const TestKey b{5, 1, 1, {10, 11}};
  CHECK(map.Insert(BlockId{1}, a.key()) == Insert::kFirst);
  CHECK(map.Find(b.key()) == kNoBlock);
  CHECK(map.Insert(BlockId{2}, b.key()) == Insert::kFirst);
  CHECK(map.Find(a.key()) == BlockId{1});
  CHECK(map.Find(b.key()) == BlockId{2});
}

TEST_CASE("only the first copy is new and only the last removal forgets") {
  PrefixMap map(5, kBlockSize);
  const TestKey k{5, 1, 0, {10, 11}};
  CHECK(map.Insert(BlockId{1}, k.key()) == Insert::kFirst);
  CHECK(map.Insert(BlockId{2}, k.key()) == Insert::kCopy);
  CHECK(map.Insert(BlockId{3}, k.key()) == Insert::kCopy);
  CHECK(map.size() == 3);
  CHECK_FALSE(map.Remove(BlockId{1}));  // the one that lookups gave
  CHECK(map.Find(k.key()) != kNoBlock);
  CHECK_FALSE(map.Remove(BlockId{3}));
  CHECK(map.Find(k.key()) == BlockId{2});
  CHECK(map.Remove(BlockId{2}));
  CHECK(map.Find(k.key()) == kNoBlock);
}

TEST_CASE("the key of a block can be read back") {
  PrefixMap map(4, kBlockSize);
  const TestKey k{5, 1, 3, {10, 11}};
  map.Insert(BlockId{2}, k.key());
  const PrefixKey read = map.KeyOf(BlockId{2});
  CHECK(read.hash == k.key().hash);
  CHECK(read.parent == k.key().parent);
  CHECK(read.group == 3);
  CHECK(std::vector<int32_t>(read.tokens.begin(), read.tokens.end()) == k.tokens);
}

TEST_CASE("deletion leaves no gap in a crowded run, also across the end of the array") {
  // 4 blocks: 8 entries. Homes 6, 6, 7 and 6 run over the end into entries 0 and 1.
  PrefixMap map(4, kBlockSize);
  const std::vector<TestKey> keys{
      {6, 0, 0, {1, 1}}, {6 + 8, 0, 0, {2, 2}}, {7, 0, 0, {3, 3}}, {6 + 16, 0, 0, {4, 4}}};
  for (size_t gone = 0; gone < keys.size(); ++gone) {
    CAPTURE(gone);
    for (size_t i = 0; i < keys.size(); ++i) {
      CHECK(map.Insert(BlockId{int32_t(i)}, keys[i].key()) == Insert::kFirst);
    }
    map.Remove(BlockId{int32_t(gone)});
    for (size_t i = 0; i < keys.size(); ++i) {
      CHECK(map.Find(keys[i].key()) == (i == gone ? kNoBlock : BlockId{int32_t(i)}));
    }
    for (size_t i = 0; i < keys.size(); ++i) {
      if (i != gone) map.Remove(BlockId{int32_t(i)});
    }
    CHECK(map.size() == 0);
  }
}

TEST_CASE("under random operations the map equals a std::map from content to a set of blocks") {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const int32_t n = 2 + int32_t(random() % 30);
    PrefixMap map(n, kBlockSize);
    std::map<std::tuple<uint64_t, int32_t>, std::pair<TestKey, std::set<int32_t>>> naive;
    std::vector<int> filed(n, 0);
    const auto random_key = [&] {
      // Few hashes, mostly equal in their low bits: copies, collisions and long runs.
      const uint64_t hash = (random() % 3) | (uint64_t{random() % 4} << 32) | ((random() % 2) << 6);
      return TestKey{hash, random() % 8 == 0, int32_t(random() % 2), {0, random() % 8 == 0}};
    };
    for (int step = 0; step < 1000; ++step) {
      const TestKey k = random_key();
      const int32_t b = int32_t(random() % n);
      auto& [content, blocks] = naive[{k.hash, k.group}];
      if (!filed[b]) {
        const Insert result = map.Insert(BlockId{b}, k.key());
        if (blocks.empty()) {
          REQUIRE(result == Insert::kFirst);
          content = k;
        } else {
          REQUIRE(result == (content == k ? Insert::kCopy : Insert::kCollision));
        }
        if (result != Insert::kCollision) {
          blocks.insert(b);
          filed[b] = 1;
        }
      } else if (random() % 2) {
        for (auto& [id, entry] : naive) {
          if (entry.second.erase(b)) REQUIRE(map.Remove(BlockId{b}) == entry.second.empty());
        }
        filed[b] = 0;
      }
      const TestKey probe = random_key();
      const auto& [held, holders] = naive[{probe.hash, probe.group}];
      const BlockId found = map.Find(probe.key());
      if (!holders.empty() && held == probe) {
        REQUIRE(holders.count(Index(found)) == 1);
      } else {
        REQUIRE(found == kNoBlock);
      }
      for (int32_t i = 0; i < n; ++i) REQUIRE(map.Contains(BlockId{i}) == (filed[i] != 0));
    }
  }
}

}  // namespace
}  // namespace octavo::kv
