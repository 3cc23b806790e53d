#include "base/hash.h"

#include <set>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"

namespace octavo {
namespace {

std::pair<uint64_t, uint64_t> Pair(const Hash128& h) { return {h.lo, h.hi}; }

TEST_CASE("the chain hash is a function of seed, parent, tokens and extra keys") {
  const ChainHasher hasher(1);
  const Hash128 root = hasher.Root({});
  const std::vector<int32_t> tokens{1, 2, 3, 4};
  const std::vector<int32_t> others{1, 2, 4, 3};
  const std::byte extra[] = {std::byte{1}};
  const Hash128 first = hasher.Next(root, tokens);
  CHECK(hasher.Next(root, tokens) == first);
  std::set<std::pair<uint64_t, uint64_t>> all{Pair(root), Pair(first)};
  all.insert(Pair(hasher.Next(first, tokens)));
  all.insert(Pair(hasher.Next(root, others)));
  all.insert(Pair(hasher.Next(root, std::span(tokens).first(3))));
  all.insert(Pair(hasher.Next(root, tokens, extra)));
  all.insert(Pair(ChainHasher(2).Next(root, tokens)));
  CHECK(all.size() == 7);
}

TEST_CASE("different salts start different chains") {
  const ChainHasher hasher(1);
  std::set<std::pair<uint64_t, uint64_t>> roots;
  for (const std::string_view salt :
       {std::string_view(), std::string_view("\0", 1), std::string_view("a"), std::string_view("b"),
        std::string_view("ab")}) {
    roots.insert(Pair(hasher.Root(salt)));
  }
  CHECK(roots.size() == 5);
  CHECK(hasher.Root("a") != ChainHasher(2).Root("a"));
}

TEST_CASE("seeds drawn from the system differ") { CHECK(RandomSeed() != RandomSeed()); }

}  // namespace
}  // namespace octavo
