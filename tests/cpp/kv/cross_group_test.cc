// Cross groups in the manager: what an item takes, when it is found, and what its blocks are filed
// under.
#include <algorithm>
#include <vector>

#include "doctest/doctest.h"
#include "kv/chain.h"
#include "kv/kv_manager.h"

namespace octavo::kv {
namespace {

constexpr RowSlot kA{0};
constexpr RowSlot kB{1};

const GroupSpec kFull{.block_size = 4};
const GroupSpec kCross{.kind = GroupKind::kCross, .block_size = 8, .encoder_len = 20};
const GroupSpec kFineCross{
    .kind = GroupKind::kCross, .block_size = 2, .split = 2, .encoder_len = 20};

KvConfig Config(std::vector<GroupSpec> groups, int32_t num_blocks = 60) {
  KvConfig config;
  config.num_blocks = num_blocks;
  config.num_slots = 3;
  config.max_tokens_per_slot = 40;
  config.groups = std::move(groups);
  return config;
}

struct ItemChain {
  ItemChain(std::vector<int32_t> tokens, uint64_t content, int32_t embeddings)
      : chain(std::move(tokens), 4), item{{content, content}, embeddings} {
    chain.root.lo ^= content * 31 + uint64_t(embeddings);  // as a request's root covers its item
  }
  PrefixChain view() const {
    PrefixChain v = chain.view();
    v.cross = &item;
    return v;
  }
  OwnedChain chain;
  CrossItem item;
};

// Admits the chain, whole, and files all of it.
KvManager::Hit Admit(KvManager& kv, RowSlot slot, const ItemChain& c) {
  const int32_t tokens = int32_t(c.chain.tokens.size());
  const KvManager::Hit hit = kv.Match(c.view(), tokens - 1);
  REQUIRE(kv.Admit(slot, hit, tokens));
  if (!hit.cross_cached) kv.PublishCross(slot, c.view());
  kv.Publish(slot, c.view(), tokens);
  kv.CheckInvariants();
  return hit;
}

void Finish(KvManager& kv, RowSlot slot) {
  kv.Release(slot);
  kv.ClearRow(slot);
  kv.CheckInvariants();
}

TEST_CASE("an item's blocks are counted with what admission takes, and only there") {
  KvManager kv(Config({kCross, kFull, kFineCross}));
  const ItemChain c(Count(0, 10), 1, 17);
  KvManager::Hit hit = kv.Match(c.view(), 9);
  const BlockNeed now = kv.AdmissionNeed(hit, 10);
  CHECK(now.of[0] == 3);
  CHECK(now.of[1] == 3);
  CHECK(now.of[2] == 9);
  CHECK(kv.PeakNeed(hit, 30).of[0] == 3);
  CHECK(kv.PeakNeed(hit, 30).of[1] == 8);
  CHECK(kv.PeakNeed(hit, 30).of[2] == 9);
  Admit(kv, kA, c);
  CHECK(kv.length(kA, 0) == 3);
  CHECK(kv.length(kA, 2) == 9);
  CHECK(kv.RemainingNeed(kA, 30).of[0] == 0);
  CHECK(kv.RemainingNeed(kA, 30).of[1] == 5);
  CHECK(kv.RemainingNeed(kA, 30).of[2] == 0);
  REQUIRE(kv.Grow(kA, 40));
  kv.FreeDead(kA, 40, 10);
  CHECK(kv.length(kA, 0) == 3);
  CHECK(kv.length(kA, 1) == 10);
  CHECK(kv.length(kA, 2) == 9);
  CHECK(kv.tables()[0].row_stride == 3);  // of 20 embeddings, whatever the tokens
  CHECK(kv.tables()[2].row_stride == 10);
  hit = kv.Match(c.view(), 9);
  CHECK(hit.cross_cached);
  CHECK(kv.AdmissionNeed(hit, 10).of[0] == 0);
  CHECK(kv.PeakNeed(hit, 10).of[2] == 0);
  // Three parents for the coarse group, ten for tokens, five for the fine one.
  CHECK(ParentsFor(std::vector<GroupSpec>{kCross, kFull, kFineCross}, 0, 40, {.tokens = 40}) == 18);
}

TEST_CASE("an admission that does not fit with its item takes nothing") {
  KvManager kv(Config({kFull, kCross}, 6));
  const ItemChain large(Count(0, 12), 1, 20);
  CHECK_FALSE(kv.Admit(kA, kv.Match(large.view(), 11), 12));
  CHECK(kv.free_blocks() == 5);
  kv.CheckInvariants();
  const ItemChain small(Count(0, 12), 1, 16);
  CHECK(kv.Admit(kA, kv.Match(small.view(), 11), 12));
  CHECK(kv.free_blocks() == 0);
}

TEST_CASE("an item is hit as a whole, or not at all") {
  for (const int group : {0, 2}) {
    for (const int which : {0, 1, 2}) {
      KvManager kv(Config({kCross, kFull, kFineCross}));
      const ItemChain c(Count(0, 9), 1, 20);
      Admit(kv, kA, c);
      const int32_t lost = kv.blocks(kA, group)[which];
      Finish(kv, kA);
      CHECK(kv.Match(c.view(), 8).cross_cached);
      kv.Forget(kv.pool().FromTable(lost, group));
      const KvManager::Hit hit = kv.Match(c.view(), 8);
      CHECK_FALSE(hit.cross_cached);
      CHECK(hit.tokens == 8);  // the prompt is hit all the same
      const int32_t filed = kv.map().size();
      CHECK_FALSE(Admit(kv, kA, c).cross_cached);
      // All of it is written again, beside the copies that are left.
      CHECK(kv.map().size() == filed + 3 + 10);
      Finish(kv, kA);
      CHECK(kv.Match(c.view(), 8).cross_cached);
    }
  }
}

TEST_CASE("requests with one item share its blocks, whatever their prompts") {
  KvManager kv(Config({kFull, kCross}));
  Admit(kv, kA, ItemChain(Count(0, 9), 1, 20));
  CHECK(Admit(kv, kB, ItemChain(Count(50, 9), 1, 20)).cross_cached);
  CHECK(std::ranges::equal(kv.blocks(kA, 1), kv.blocks(kB, 1)));
  Finish(kv, kA);
  CHECK(kv.length(kB, 1) == 3);
  Finish(kv, kB);
  CHECK(kv.free_blocks() == 59);
  // A request that starts afresh to pack its blocks takes new ones.
  CHECK_FALSE(kv.Match(ItemChain(Count(0, 9), 1, 20).view(), 8, /*fresh=*/true).cross_cached);
}

TEST_CASE("only the whole content of an item's block is a hit") {
  KvManager kv(Config({kFull, kCross}));
  const ItemChain first(Count(0, 9), 1, 20);
  Admit(kv, kA, first);
  // Forged: other items whose root, and so every hash, is that of the first.
  ItemChain hash(Count(0, 9), 2, 20);
  ItemChain length(Count(0, 9), 1, 19);
  hash.chain.root = length.chain.root = first.chain.root;
  for (const ItemChain& forged : {hash, length}) {
    CHECK_FALSE(kv.Match(forged.view(), 8).cross_cached);
    Admit(kv, kB, forged);  // its blocks stay out of the map
    CHECK_FALSE(kv.Match(forged.view(), 8).cross_cached);
    CHECK(kv.Match(first.view(), 8).cross_cached);
    Finish(kv, kB);
  }
}

TEST_CASE("what is forgotten of an item are all of its copies, whoever holds them") {
  KvManager kv(Config({kFull, kCross}));
  const ItemChain c(Count(0, 9), 1, 20);
  Admit(kv, kA, c);
  REQUIRE(kv.Admit(kB, kv.Match(c.view(), 8, /*fresh=*/true), 9));
  kv.PublishCross(kB, c.view());  // copies
  CHECK(kv.map().size() == 2 + 3 + 3);
  kv.ForgetCross(c.view());
  kv.CheckInvariants();
  CHECK(kv.map().size() == 2);
  CHECK_FALSE(kv.Match(c.view(), 8).cross_cached);
  Finish(kv, kA);
  Finish(kv, kB);
}

TEST_CASE("a load counts the item's blocks that nobody uses with what its request will take") {
  KvManager kv(Config({kFull, kCross}, 8));
  const ItemChain c(Count(0, 17), 1, 20);
  std::vector<KvBlock> missing;
  // Four blocks of 16 tokens, one more up to the gate and three of the item: one too many.
  CHECK(kv.HoldPrefix(c.view(), 16, 17, {}, 0, &missing) < 0);
  CHECK(missing.empty());
  CHECK(kv.free_blocks() == 7);
  const int32_t hold = kv.HoldPrefix(c.view(), 16, 16, {}, 0, &missing);
  CHECK(hold >= 0);
  CHECK(missing.size() == 4);
  kv.CheckInvariants();
  kv.DropHold(hold);
}

}  // namespace
}  // namespace octavo::kv
