// What requests ask to be kept: by token range, by priority, for a time.
#include <vector>

#include "doctest/doctest.h"
#include "kv/chain.h"
#include "kv/kv_manager.h"

namespace octavo::kv {
namespace {

constexpr int32_t kBlockSize = 4;
constexpr RowSlot kA{0};
constexpr RowSlot kB{1};
constexpr int64_t kSecond = 1'000'000;

KvConfig Config(int32_t num_blocks) {
  KvConfig config;
  config.num_blocks = num_blocks;
  config.block_size = kBlockSize;
  config.num_slots = 4;
  config.max_tokens_per_slot = 64;
  return config;
}

// A chain with a wish: `ranges` of a prompt that is the whole chain.
struct Wishing {
  Wishing(std::vector<int32_t> tokens, std::vector<RetentionRange> ranges)
      : chain(std::move(tokens), kBlockSize) {
    plan.Assign({ranges, kOrdinaryPriority, 0}, int32_t(chain.tokens.size()));
  }
  PrefixChain view() const {
    PrefixChain v = chain.view();
    v.retention = &plan;
    return v;
  }
  int32_t size() const { return int32_t(chain.tokens.size()); }

  OwnedChain chain;
  RetentionPlan plan;
};

void Run(KvManager& kv, const PrefixChain& chain) {
  const int32_t tokens = int32_t(chain.tokens.size());
  REQUIRE(kv.Admit(kA, kv.Match(chain, tokens), tokens));
  kv.Publish(kA, chain, tokens);
  kv.CheckInvariants();
  kv.Release(kA);
  kv.ClearRow(kA);
  kv.CheckInvariants();
}

// How much of `chain` is cached after all but `spare` blocks were taken once.
int32_t LeftAfterTaking(KvManager& kv, const Wishing& wishing, int32_t blocks) {
  REQUIRE(kv.Admit(kB, {}, blocks * kBlockSize));
  kv.Release(kB);
  kv.ClearRow(kB);
  kv.CheckInvariants();
  return kv.Match(wishing.view(), wishing.size()).tokens;
}

EvictionClass ClassAt(KvManager& kv, const Wishing& w, int32_t index) {
  REQUIRE(kv.Admit(kB, kv.Match(w.chain.view(), w.size()), w.size()));
  const BlockId b{kv.blocks(kB)[index]};
  kv.Release(kB);
  kv.ClearRow(kB);
  return kv.pool().eviction_class(b);
}

TEST_CASE("a block has the priority of the range that its first token lies in") {
  RetentionPlan plan;
  const RetentionRange ranges[] = {{2, 5, 80, 0}, {5, 6, 0, 7}};
  plan.Assign({ranges, 60, 0}, 10);
  CHECK(plan.Of(1) == nullptr);
  CHECK(plan.Of(2)->priority == 80);
  CHECK(plan.Of(4)->priority == 80);
  CHECK(plan.Of(5)->priority == 0);
  CHECK(plan.Of(5)->duration_us == 7000);
  CHECK(plan.Of(6) == nullptr);
  CHECK(plan.Of(10)->priority == 60);
  CHECK(plan.timed());
  plan.Assign({}, 10);
  CHECK(plan.empty());
  CHECK(plan.Of(10) == nullptr);
}

TEST_CASE("what a request asked to keep outlives what came later, in the order of its priorities") {
  KvManager kv(Config(13));
  const Wishing pinned(Count(0, 8), {{0, 8, 100, 0}});
  const Wishing high(Count(100, 8), {{0, 8, 36, 0}});
  const Wishing low(Count(200, 8), {{0, 8, 10, 0}});
  const Wishing plain(Count(300, 8), {});
  for (const Wishing* w : {&pinned, &high, &low, &plain}) Run(kv, w->view());
  // Four blocks are empty, two low, two ordinary.
  CHECK(LeftAfterTaking(kv, low, 6) == 0);
  CHECK(kv.Match(plain.view(), 8).tokens == 8);
  CHECK(LeftAfterTaking(kv, plain, 8) == 0);
  CHECK(LeftAfterTaking(kv, high, 10) == 0);
  CHECK(LeftAfterTaking(kv, pinned, 10) == 8);
}

TEST_CASE("pinned blocks never make an admission impossible") {
  KvManager kv(Config(9));
  const Wishing pinned(Count(0, 32), {{0, 32, 100, 0}});
  Run(kv, pinned.view());
  CHECK(kv.pool().free_parents(EvictionClass::kPinned) == 8);
  CHECK(LeftAfterTaking(kv, pinned, 8) == 0);
}

TEST_CASE("a wish ends its time after the release, and the block is ordinary again") {
  KvManager kv(Config(13));
  kv.EnableExpiry();
  kv.Expire(kSecond);
  const Wishing wish(Count(0, 8), {{0, 4, 90, 2000}, {4, 8, 5, 500}});
  REQUIRE(kv.Admit(kA, kv.Match(wish.view(), 8), 8));
  kv.Publish(kA, wish.view(), 8);
  kv.Expire(60 * kSecond);  // it is held, so nothing ends
  const BlockId first{kv.blocks(kA)[0]};
  const BlockId second{kv.blocks(kA)[1]};
  CHECK(kv.pool().eviction_class(first) == ClassOf(90));
  kv.Release(kA);
  kv.ClearRow(kA);
  kv.Expire(61 * kSecond);
  CHECK(kv.pool().eviction_class(first) == ClassOf(90));
  CHECK(kv.pool().eviction_class(second) == EvictionClass::kProbationary);
  kv.Expire(63 * kSecond);
  CHECK(kv.pool().eviction_class(first) == EvictionClass::kProbationary);
  kv.CheckInvariants();
}

TEST_CASE("after its time a block that was hit is proven") {
  KvManager kv(Config(13));
  kv.EnableExpiry();
  const Wishing wish(Count(0, 8), {{0, 8, 90, 2000}});
  Run(kv, wish.view());
  CHECK(ClassAt(kv, wish, 0) == ClassOf(90));  // hit by one that wishes nothing
  kv.Expire(10 * kSecond);
  CHECK(ClassAt(kv, wish, 0) == EvictionClass::kProven);
}

TEST_CASE("the latest wish counts, and an ordinary one takes a wish back") {
  KvManager kv(Config(13));
  kv.EnableExpiry();
  Run(kv, Wishing(Count(0, 8), {{0, 8, 90, 1000}}).view());
  const Wishing later(Count(0, 8), {{0, 4, 10, 0}, {4, 8, 35, 0}});
  Run(kv, later.view());
  CHECK(ClassAt(kv, later, 0) == ClassOf(10));
  CHECK(ClassAt(kv, later, 1) == EvictionClass::kProven);
  kv.Expire(100 * kSecond);
  CHECK(ClassAt(kv, later, 0) == ClassOf(10));  // without an end
}

TEST_CASE("a block that got other content is not in the wheel any more") {
  KvManager kv(Config(5));
  kv.EnableExpiry();
  const Wishing wish(Count(0, 16), {{0, 16, 90, 1000}});
  Run(kv, wish.view());
  CHECK(LeftAfterTaking(kv, wish, 4) == 0);
  const Wishing other(Count(50, 16), {{0, 16, 60, 0}});
  Run(kv, other.view());
  kv.Expire(100 * kSecond);
  CHECK(ClassAt(kv, other, 3) == ClassOf(60));
}

}  // namespace
}  // namespace octavo::kv
