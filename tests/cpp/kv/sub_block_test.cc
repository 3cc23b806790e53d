// Hits that end inside a block: what is found, what is copied, and what is held meanwhile.
#include <vector>

#include "doctest/doctest.h"
#include "kv/chain.h"
#include "kv/kv_manager.h"

namespace octavo::kv {
namespace {

constexpr int32_t kBlockSize = 8;
constexpr RowSlot kA{0};
constexpr RowSlot kB{1};

class Pool {
 public:
  explicit Pool(int32_t num_blocks, std::vector<GroupSpec> groups = {})
      : kv(Config(num_blocks, groups)) {
    Begin();
  }
  void Begin() { kv.BeginStep(&published, &copies); }
  // The step is over.
  void End() {
    kv.EndCopies(copies);
    copies.clear();
    published.clear();
    kv.CheckInvariants();
    Begin();
  }
  // Runs `chain` in a step of its own and lets it go, tail and all.
  void Run(const OwnedChain& chain) {
    const int32_t n = int32_t(chain.tokens.size());
    REQUIRE(kv.Admit(kA, kv.Match(chain.view(), n - 1), n));
    kv.Publish(kA, chain.view(), n);
    End();
    Finish(chain, kA);
  }
  void Finish(const OwnedChain& chain, RowSlot slot) {
    kv.PublishTail(slot, chain.view(), int32_t(chain.tokens.size()));
    kv.Release(slot);
    kv.ClearRow(slot);
    kv.CheckInvariants();
    Begin();
  }
  KvManager::Hit Match(const OwnedChain& chain) {
    return kv.Match(chain.view(), int32_t(chain.tokens.size()) - 1);
  }

  KvManager kv;
  std::vector<BlockId> published;
  std::vector<BlockCopy> copies;

 private:
  static KvConfig Config(int32_t num_blocks, const std::vector<GroupSpec>& groups) {
    KvConfig config;
    config.num_blocks = num_blocks;
    config.block_size = kBlockSize;
    config.num_slots = 4;
    config.max_tokens_per_slot = 64;
    config.groups = groups;
    config.sub_block_hits = true;
    config.enable_events = true;
    return config;
  }
};

// 0, 1, ... with other tokens from `from` on.
OwnedChain Branch(int32_t from, int32_t count, int32_t first = 500) {
  std::vector<int32_t> tokens = Count(0, count);
  for (int32_t i = from; i < count; ++i) tokens[i] = first + i;
  return OwnedChain(tokens, kBlockSize);
}

TEST_CASE("a block that starts like the next one is found, as far as they agree") {
  Pool pool(20);
  pool.Run(Branch(24, 24));
  for (int32_t from : {8, 10, 13, 15}) {
    CAPTURE(from);
    const auto hit = pool.Match(Branch(from, 20));
    CHECK(hit.tokens == 8);
    CHECK(hit.partial == (from - 8 >= 2 ? from - 8 : 0));
  }
  CHECK(pool.Match(Branch(9, 20)).partial == 0);  // one token is not worth a copy
  CHECK(pool.Match(Branch(4, 20)).partial == 4);  // also in the first block
}

TEST_CASE("the last block of a prompt is found though it is not full, up to the last token") {
  Pool pool(20);
  const OwnedChain chain(Count(0, 21), kBlockSize);
  pool.Run(chain);
  const auto again = pool.Match(chain);
  CHECK(again.tokens == 16);
  CHECK(again.partial == 4);
  const OwnedChain whole(Count(0, 16), kBlockSize);
  CHECK(pool.Match(whole).partial == 7);
  const OwnedChain short_tail(Count(0, 18), kBlockSize);
  CHECK(pool.Match(short_tail).partial == 1);  // all there is to find
  CHECK(pool.Match(OwnedChain(Count(0, 40), kBlockSize)).partial == 5);
}

TEST_CASE("of several that agree the one that shares most is taken, of equals the latest") {
  Pool pool(40);
  pool.Run(Branch(10, 16, 100));
  pool.Run(Branch(14, 16, 200));
  pool.Run(Branch(12, 16, 300));
  const auto hit = pool.Match(Branch(15, 20, 400));
  CHECK(hit.tokens == 8);
  CHECK(hit.partial == 6);
}

TEST_CASE("what stands before must be the same prefix, and so must the salt") {
  Pool pool(40);
  pool.Run(Branch(24, 24));
  std::vector<int32_t> tokens = Count(0, 20);
  tokens[3] = 77;
  const auto other = pool.Match(OwnedChain(tokens, kBlockSize));
  CHECK(other.tokens == 0);
  CHECK(other.partial == 3);
  CHECK(pool.Match(OwnedChain(Count(0, 20), kBlockSize, "salt")).partial == 0);
}

TEST_CASE("source and copy stay until the copying step is over") {
  Pool pool(20);
  const OwnedChain chain(Count(0, 21), kBlockSize);
  pool.Run(chain);
  const auto hit = pool.Match(chain);
  REQUIRE(pool.kv.Admit(kB, hit, 21));
  REQUIRE(pool.copies.size() == 1);
  const BlockCopy copy = pool.copies[0];
  CHECK(copy.tokens == 4);
  CHECK(Index(copy.target) == pool.kv.blocks(kB)[2]);
  CHECK(copy.source != copy.target);
  CHECK(pool.kv.pool().refs(copy.source) == 1);
  CHECK(pool.kv.pool().refs(copy.target) == 2);
  pool.kv.CheckInvariants();
  // The request ends while its step runs: what was to be copied is not filed, and nothing is free.
  pool.Finish(chain, kB);
  CHECK(pool.kv.pool().refs(copy.target) == 1);
  CHECK_FALSE(pool.kv.map().Contains(copy.target));
  pool.End();
  CHECK(pool.kv.free_blocks() == 19);
  CHECK(pool.kv.pool().eviction_class(copy.source) == EvictionClass::kProven);
}

TEST_CASE("what this step files is no source, for it is not written before the copies are made") {
  Pool pool(20);
  const OwnedChain chain(Count(0, 24), kBlockSize);
  REQUIRE(pool.kv.Admit(kA, pool.Match(chain), 24));
  pool.kv.Publish(kA, chain.view(), 24);
  CHECK(pool.Match(Branch(13, 20)).tokens == 8);
  CHECK(pool.Match(Branch(13, 20)).partial == 0);
  pool.End();
  CHECK(pool.Match(Branch(13, 20)).partial == 5);
}

TEST_CASE("a tail that is found already is not filed again, and no event tells of tails") {
  Pool pool(20);
  const OwnedChain chain(Count(0, 21), kBlockSize);
  pool.Run(chain);
  CHECK(pool.kv.map().size() == 3);
  pool.Run(chain);
  CHECK(pool.kv.map().size() == 3);
  std::vector<KvEvent> events;
  pool.kv.events().Take(&events);
  CHECK(events.size() == 2);
  CHECK(pool.kv.Reset());
  CHECK(pool.kv.map().size() == 0);
  CHECK(pool.Match(chain).partial == 0);
}

TEST_CASE("an evicted tail is found no more") {
  Pool pool(5);
  const OwnedChain chain(Count(0, 12), kBlockSize);
  pool.Run(chain);
  pool.Run(OwnedChain(Count(100, 32), kBlockSize));
  CHECK(pool.Match(chain).tokens == 0);
  CHECK(pool.Match(chain).partial == 0);
}

TEST_CASE("an admission that does not fit with its source held is refused without a change") {
  Pool pool(4);
  const OwnedChain chain(Count(0, 20), kBlockSize);
  pool.Run(chain);
  auto hit = pool.Match(chain);
  REQUIRE(hit.tokens == 16);
  REQUIRE(hit.partial == 3);
  CHECK_FALSE(pool.kv.Admit(kB, hit, 20));  // two hits, the source, and a block of its own
  CHECK(pool.copies.empty());
  CHECK(pool.kv.free_blocks() == 3);
  pool.kv.CheckInvariants();
  hit.partial = 0;
  CHECK(pool.kv.Admit(kB, hit, 20));
  pool.kv.CheckInvariants();
}

TEST_CASE("groups of full attention agree on how much they copy, others never copy") {
  const GroupSpec full{.block_size = 8};
  const OwnedChain chain(Count(0, 21), kBlockSize);
  Pool two(40, {full, full});
  two.Run(chain);
  REQUIRE(two.Match(chain).partial == 4);
  REQUIRE(two.kv.Admit(kB, two.Match(chain), 21));
  CHECK(two.copies.size() == 2);
  CHECK(two.copies[0].group != two.copies[1].group);
  for (const GroupSpec& other :
       {GroupSpec{.block_size = 4}, GroupSpec{.kind = GroupKind::kState, .block_size = 8},
        GroupSpec{.kind = GroupKind::kSlidingWindow, .block_size = 8, .window = 100}}) {
    Pool mixed(40, {full, other});
    mixed.Run(chain);
    CHECK(mixed.Match(chain).partial == 0);
  }
}

TEST_CASE("latent vectors are kept, found and copied as keys and values of every token are") {
  const GroupSpec full{.block_size = 8};
  const GroupSpec latent{.kind = GroupKind::kLatent, .block_size = 8};
  const OwnedChain chain(Count(0, 21), kBlockSize);
  for (const std::vector<GroupSpec>& groups :
       {std::vector<GroupSpec>{latent}, {latent, latent}, {full, latent}}) {
    Pool pool(40, groups);
    CHECK(pool.kv.keeps_everything());
    pool.Run(chain);
    CHECK(pool.Match(chain).tokens == 16);
    CHECK(pool.Match(chain).partial == 4);
  }
  for (const GroupSpec& spec : {full, latent})
    CHECK(ParentsFor({&spec, 1}, 8, 61, {.tokens = 8}) == 8);
}

}  // namespace
}  // namespace octavo::kv
