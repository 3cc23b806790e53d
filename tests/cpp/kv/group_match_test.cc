// Which prefix each kind of group finds, and on which they agree, against brute force: for every
// length, is every block there that the next token would read?
#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "kv/chain.h"
#include "kv/kv_manager.h"

namespace octavo::kv {
namespace {

int32_t Below(std::mt19937& random, int32_t n) { return int32_t(random() % uint32_t(n)); }

GroupSpec RandomSpec(std::mt19937& random) {
  GroupSpec s;
  // Of those that hold tokens.
  constexpr GroupKind kKinds[] = {GroupKind::kFull, GroupKind::kLatent, GroupKind::kSlidingWindow,
                                  GroupKind::kChunkedLocal, GroupKind::kState};
  s.kind = kKinds[Below(random, 5)];
  s.block_size = 1 << Below(random, 4);
  if (s.kind == GroupKind::kSlidingWindow || s.kind == GroupKind::kChunkedLocal) {
    s.window = 1 + Below(random, 24);
    s.sink = Below(random, 2) * Below(random, 20);
  }
  s.split = 1 + Below(random, 3);
  return s;
}

// Whether the token at `query` reads what stands at `p` < query; states are read as a whole.
bool Reads(const GroupSpec& s, int32_t query, int32_t p) {
  switch (s.kind) {
    case GroupKind::kFull:
    case GroupKind::kLatent:
      return true;
    case GroupKind::kSlidingWindow:
      return p < s.sink || p > query - s.window;
    case GroupKind::kChunkedLocal:
      return p < s.sink || p / s.window == query / s.window;
    case GroupKind::kState:
      return p == query - 1;
    case GroupKind::kCross:
      break;  // holds no tokens
  }
  return false;
}

struct Oracle {
  Oracle(const GroupSpec& s, int index, int32_t unit) : spec(s), group(MakeGroup(s, index, unit)) {}

  bool ReadsBlock(int32_t length, int32_t block) const {
    for (int32_t p = block * spec.block_size; p < (block + 1) * spec.block_size; ++p) {
      if (p < length && Reads(spec, length, p)) return true;
    }
    return false;
  }
  bool Holds(const PrefixMap& map, const PrefixChain& chain, int32_t length) const {
    if (length > group->Covered(chain) * spec.block_size) return false;
    for (int32_t b = 0; b < length / spec.block_size; ++b) {
      if (ReadsBlock(length, b) && map.Place(group->KeyOf(chain, b)) == kNoBlock) return false;
    }
    return true;
  }

  GroupSpec spec;
  std::unique_ptr<CacheGroup> group;
};

struct Case {
  explicit Case(uint32_t seed) : random(seed) {
    const int32_t n = 1 + Below(random, 4);
    for (int32_t i = 0; i < n; ++i) specs.push_back(RandomSpec(random));
    for (const GroupSpec& s : specs) {
      unit = std::gcd(unit, s.block_size);
      align = std::lcm(align, s.block_size);
    }
    for (int32_t i = 0; i < n; ++i) groups.emplace_back(specs[i], i, unit);
    cap = Below(random, 100);
    tokens = Count(0, 1 + Below(random, 100));
  }
  // The longest that all of `some` hold.
  int32_t Longest(const PrefixMap& map, const PrefixChain& chain,
                  std::span<const Oracle> some) const {
    for (int32_t length = cap / align * align; length > 0; length -= align) {
      if (std::all_of(some.begin(), some.end(),
                      [&](const Oracle& o) { return o.Holds(map, chain, length); })) {
        return length;
      }
    }
    return 0;
  }

  std::mt19937 random;
  std::vector<GroupSpec> specs;
  std::vector<Oracle> groups;
  std::vector<int32_t> tokens;
  int32_t unit = 0;
  int32_t align = 1;
  int32_t cap = 0;
};

TEST_CASE("each group finds the longest prefix whose live blocks are there") {
  int found = 0;
  for (uint32_t seed = 1; seed <= 1000; ++seed) {
    CAPTURE(seed);
    Case c(seed);
    const OwnedChain chain(c.tokens, c.unit);
    PrefixMap map(1000, kMaxBlockSize);
    int32_t next = 1;
    const int32_t percent = 30 + Below(c.random, 71);
    for (const Oracle& o : c.groups) {
      for (int32_t b = 0; b < o.group->Covered(chain.view()); ++b) {
        if (Below(c.random, 100) >= percent) continue;
        // Linked to what stands before it, as far as that is there.
        const BlockId before = b == 0 ? kNoBlock : map.Place(o.group->KeyOf(chain.view(), b - 1));
        const int64_t serial = b == 0               ? kRootSerial
                               : before == kNoBlock ? kUnlinked
                                                    : map.SerialOf(before);
        const bool linked = o.group->KeepsEverything();
        map.Insert(BlockId{next++}, o.group->KeyOf(chain.view(), b, linked ? serial : kUnlinked));
      }
    }
    std::vector<BlockId> hits(200);
    for (const Oracle& o : c.groups) {
      CAPTURE(int(o.spec.kind));
      std::fill(hits.begin(), hits.end(), BlockId{9999});
      const int32_t length =
          o.group->Match(map, chain.view(), c.cap / c.align * c.align, c.align, {}, hits.data());
      REQUIRE(length == c.Longest(map, chain.view(), {&o, 1}));
      found += length > 0;
      for (int32_t b = 0; b < length / o.spec.block_size; ++b) {
        const bool read = o.ReadsBlock(length, b);
        const BlockId filed = map.Place(o.group->KeyOf(chain.view(), b));
        REQUIRE((hits[b] == filed || (!read && hits[b] == kNoBlock)));
      }
    }
  }
  CHECK(found > 500);
}

// Admits the case's tokens, files every block and state of every group, and forgets some.
void FileSome(KvManager& kv, Case& c, const OwnedChain& chain) {
  constexpr RowSlot slot{0};
  REQUIRE(kv.Admit(slot, {}, std::min(c.unit, int32_t(c.tokens.size()))));
  for (int32_t t = c.unit; t <= int32_t(c.tokens.size()); t += c.unit) {
    REQUIRE(kv.Grow(slot, t));
    kv.Publish(slot, chain.view(), t);
    kv.PublishStates(slot, chain.view(), t);
  }
  kv.CheckInvariants();
  const int32_t percent = Below(c.random, 40);
  for (int g = 0; g < kv.num_groups(); ++g) {
    for (int32_t entry : kv.blocks(slot, g)) {
      if (Below(c.random, 100) < percent) kv.Forget(kv.pool().FromTable(entry, g));
    }
  }
  kv.CheckInvariants();
}

TEST_CASE("several groups agree on the longest prefix that all of them hold") {
  int found = 0;
  for (uint32_t seed = 1; seed <= 1000; ++seed) {
    CAPTURE(seed);
    Case c(seed);
    KvConfig config;
    config.num_blocks = 900;
    config.num_slots = 2;
    config.max_tokens_per_slot = 128;
    config.groups = c.specs;
    KvManager kv(config);
    REQUIRE(kv.unit() == c.unit);
    REQUIRE(kv.align() == c.align);
    const OwnedChain chain(c.tokens, c.unit);
    FileSome(kv, c, chain);

    const auto hit = kv.Match(chain.view(), c.cap);
    REQUIRE(hit.tokens == c.Longest(kv.map(), chain.view(), c.groups));
    found += hit.tokens > 0;
    constexpr RowSlot slot{1};
    REQUIRE(kv.Admit(slot, hit, hit.tokens + 1));
    kv.CheckInvariants();
    for (int g = 0; g < kv.num_groups(); ++g) {
      const Oracle& o = c.groups[g];
      REQUIRE(kv.length(slot, g) == hit.tokens / o.spec.block_size + 1);
      for (int32_t b = 0; b < hit.tokens / o.spec.block_size; ++b) {
        if (!o.ReadsBlock(hit.tokens, b)) continue;
        const BlockId filed = kv.map().Place(o.group->KeyOf(chain.view(), b));
        REQUIRE(kv.pool().FromTable(kv.blocks(slot, g)[b], g) == filed);
      }
    }
  }
  CHECK(found > 200);
}

}  // namespace
}  // namespace octavo::kv
