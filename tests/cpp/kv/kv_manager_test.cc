#include "kv/kv_manager.h"

#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "kv/chain.h"

namespace octavo::kv {
namespace {

constexpr int32_t kBlockSize = 4;
constexpr RowSlot kA{0};
constexpr RowSlot kB{1};
constexpr RowSlot kC{2};

KvConfig Config(int32_t num_blocks, bool events = false) {
  KvConfig config;
  config.num_blocks = num_blocks;
  config.block_size = kBlockSize;
  config.num_slots = 4;
  config.max_tokens_per_slot = 64;
  config.enable_events = events;
  return config;
}

std::vector<int32_t> Blocks(const KvManager& kv, RowSlot slot) {
  return {kv.blocks(slot).begin(), kv.blocks(slot).end()};
}

BlockNeed Keep(int32_t blocks) {
  BlockNeed need;
  need.of[0] = blocks;
  return need;
}

// Admits `chain` with whatever is cached of it, and files all of its full blocks.
KvManager::Hit Run(KvManager& kv, RowSlot slot, const OwnedChain& chain) {
  const int32_t tokens = int32_t(chain.tokens.size());
  const auto hit = kv.Match(chain.view(), tokens);
  REQUIRE(kv.Admit(slot, hit, tokens));
  kv.Publish(slot, chain.view(), tokens);
  kv.CheckInvariants();
  return hit;
}

void Finish(KvManager& kv, RowSlot slot) {
  kv.Release(slot);
  kv.ClearRow(slot);
  kv.CheckInvariants();
}

TEST_CASE("a slot holds as many blocks as its tokens need, rounded up") {
  KvManager kv(Config(10));
  for (const auto& [tokens, blocks] : {std::pair{0, 0}, {1, 1}, {4, 1}, {5, 2}}) {
    CHECK(kv.AdmissionNeed({}, tokens).of[0] == blocks);
    CHECK(kv.PeakNeed({}, tokens).of[0] == blocks);
  }
  REQUIRE(kv.Admit(kA, {}, 5));
  CHECK(kv.length(kA) == 2);
  CHECK(kv.RemainingNeed(kA, 8).of[0] == 0);
  CHECK(kv.RemainingNeed(kA, 9).of[0] == 1);
  REQUIRE(kv.Grow(kA, 9));
  CHECK(kv.length(kA) == 3);
  CHECK(kv.free_blocks() == 6);
  kv.CheckInvariants();
}

TEST_CASE("growing beyond the pool fails and changes nothing") {
  KvManager kv(Config(4));
  REQUIRE(kv.Admit(kA, {}, 4));
  const auto before = Blocks(kv, kA);
  CHECK_FALSE(kv.Grow(kA, 17));
  CHECK(Blocks(kv, kA) == before);
  CHECK(kv.free_blocks() == 2);
  kv.CheckInvariants();
}

TEST_CASE("admission counts revived blocks and the reserve, and takes nothing when it fails") {
  KvManager kv(Config(6));
  const OwnedChain prefix(Count(0, 8), kBlockSize);
  Run(kv, kA, prefix);
  Finish(kv, kA);
  const OwnedChain longer(Count(0, 16), kBlockSize);
  const auto hit = kv.Match(longer.view(), 16);
  REQUIRE(hit.tokens == 8);
  CHECK(kv.AdmissionNeed(hit, 16).of[0] == 2);
  // Two revived, two new, two to keep: one more than the five there are.
  CHECK_FALSE(kv.Admit(kB, hit, 16, Keep(2)));
  CHECK(kv.length(kB) == 0);
  CHECK(kv.free_blocks() == 5);
  kv.CheckInvariants();
  CHECK(kv.Admit(kB, hit, 16, Keep(1)));
  CHECK(kv.free_blocks() == 1);
  kv.CheckInvariants();
}

TEST_CASE("a refused admission makes its hit recent, but proves nothing") {
  KvManager kv(Config(6));
  const OwnedChain prefix(Count(0, 8), kBlockSize);
  Run(kv, kA, prefix);
  Finish(kv, kA);
  const OwnedChain longer(Count(0, 16), kBlockSize);
  const auto hit = kv.Match(longer.view(), 16);
  CHECK_FALSE(kv.Admit(kB, hit, 16, Keep(2)));
  CHECK(kv.pool().free_parents(EvictionClass::kProven) == 0);
  CHECK(kv.pool().free_parents(EvictionClass::kProbationary) == 2);
  REQUIRE(kv.Admit(kB, hit, 16));
  Finish(kv, kB);
  CHECK(kv.pool().free_parents(EvictionClass::kProven) == 2);
}

TEST_CASE("a hit that others hold costs nothing of the free blocks") {
  KvManager kv(Config(6));
  const OwnedChain prefix(Count(0, 8), kBlockSize);
  Run(kv, kA, prefix);
  const auto hit = kv.Match(prefix.view(), 8);
  CHECK(hit.tokens == 8);
  REQUIRE(kv.Admit(kB, hit, 9, Keep(2)));
  CHECK(kv.pool().refs(BlockId{Blocks(kv, kA)[0]}) == 2);
  CHECK(Blocks(kv, kB)[0] == Blocks(kv, kA)[0]);
  CHECK(kv.ExclusiveBlocks(kB) == 1);
  kv.CheckInvariants();
}

TEST_CASE("a match stops at the cap, whole blocks only") {
  KvManager kv(Config(10));
  const OwnedChain chain(Count(0, 12), kBlockSize);
  Run(kv, kA, chain);
  CHECK(kv.Match(chain.view(), 12).tokens == 12);
  CHECK(kv.Match(chain.view(), 11).tokens == 8);
  CHECK(kv.Match(chain.view(), 3).tokens == 0);
}

TEST_CASE("a match stops at the first missing block") {
  KvManager kv(Config(10));
  const OwnedChain chain(Count(0, 12), kBlockSize);
  Run(kv, kA, chain);
  kv.Forget(BlockId{Blocks(kv, kA)[1]});
  kv.CheckInvariants();
  CHECK(kv.Match(chain.view(), 12).tokens == 4);
}

TEST_CASE("salts keep equal prompts apart") {
  KvManager kv(Config(10));
  Run(kv, kA, OwnedChain(Count(0, 8), kBlockSize, "tenant a"));
  CHECK(kv.Match(OwnedChain(Count(0, 8), kBlockSize, "tenant b").view(), 8).tokens == 0);
  CHECK(kv.Match(OwnedChain(Count(0, 8), kBlockSize).view(), 8).tokens == 0);
  CHECK(kv.Match(OwnedChain(Count(0, 8), kBlockSize, "tenant a").view(), 8).tokens == 8);
}

TEST_CASE("a prefix outlives its suffix when both are free") {
  KvManager kv(Config(5));
  const OwnedChain chain(Count(0, 16), kBlockSize);
  Run(kv, kA, chain);
  Finish(kv, kA);
  for (int32_t left : {12, 8, 4, 0}) {
    REQUIRE(kv.Admit(kB, {}, kBlockSize * (5 - left / 4 - 1)));
    CHECK(kv.Match(chain.view(), 16).tokens == left);
    kv.Release(kB);
    kv.ClearRow(kB);
  }
  CHECK(kv.evictions() == 4);
}

TEST_CASE("a prefix that was hit outlives one that was not, whatever came last") {
  KvManager kv(Config(9));
  const OwnedChain popular(Count(0, 4), kBlockSize);
  Run(kv, kA, popular);
  Run(kv, kB, popular);  // the hit proves it
  Finish(kv, kA);
  Finish(kv, kB);
  const OwnedChain once(Count(100, 28), kBlockSize);
  Run(kv, kA, once);
  Finish(kv, kA);
  REQUIRE(kv.Admit(kB, {}, 28));
  CHECK(kv.Match(popular.view(), 4).tokens == 4);
  CHECK(kv.Match(once.view(), 28).tokens == 0);
}

TEST_CASE("released blocks are free at once, and the row keeps its entries until it is cleared") {
  KvManager kv(Config(6));
  REQUIRE(kv.Admit(kA, {}, 8));
  const auto held = Blocks(kv, kA);
  kv.Release(kA);
  CHECK(kv.free_blocks() == 5);
  CHECK(kv.length(kA) == 0);
  const BlockTableView& table = kv.tables()[0];
  CHECK(std::vector<int32_t>(table.data, table.data + 2) == held);
  kv.CheckInvariants();
  kv.ClearRow(kA);
  CHECK(std::vector<int32_t>(table.data, table.data + 2) == std::vector<int32_t>{0, 0});
  kv.CheckInvariants();
}

TEST_CASE("what is not to be trusted leaves the map, every copy of it") {
  KvManager kv(Config(10));
  const OwnedChain chain(Count(0, 12), kBlockSize);
  const OwnedChain other(Count(5, 12), kBlockSize);
  REQUIRE(kv.Admit(kA, {}, 12));
  REQUIRE(kv.Admit(kB, {}, 12));
  kv.Publish(kA, chain.view(), 12);
  kv.Publish(kB, chain.view(), 12);
  kv.Release(kB);
  kv.ClearRow(kB);
  Run(kv, kB, other);
  kv.ForgetPast(chain.view(), kBlockSize + 1);
  kv.CheckInvariants();
  CHECK(kv.Match(chain.view(), 12).tokens == 4);
  kv.ForgetPast(chain.view(), 0);
  kv.CheckInvariants();
  CHECK(kv.Match(chain.view(), 12).tokens == 0);
  CHECK(kv.Match(other.view(), 12).tokens == 12);
  CHECK(kv.blocks(kA).size() == 3);  // it still holds them
}

TEST_CASE("the publish log names every block that was filed") {
  KvManager kv(Config(10));
  std::vector<BlockId> log;
  kv.BeginStep(&log, nullptr);
  const OwnedChain chain(Count(0, 10), kBlockSize);
  Run(kv, kA, chain);
  REQUIRE(log.size() == 2);
  CHECK(Index(log[0]) == Blocks(kv, kA)[0]);
  CHECK(Index(log[1]) == Blocks(kv, kA)[1]);
}

TEST_CASE("nothing after a block whose hash collides is filed, for its prefix is another") {
  KvManager kv(Config(12));
  const OwnedChain mine(Count(0, 8), kBlockSize);
  Run(kv, kA, mine);
  // The same first hash over other tokens, and a second block that then hashes alike.
  OwnedChain forged(Count(0, 8), kBlockSize);
  forged.tokens[1] = 99;
  CHECK(kv.Match(forged.view(), 8).tokens == 0);
  REQUIRE(kv.Admit(kB, {}, 8));
  kv.Publish(kB, forged.view(), 8);
  kv.CheckInvariants();
  CHECK(kv.map().size() == 2);
  Finish(kv, kA);
  REQUIRE(kv.Match(mine.view(), 8).tokens == 8);
  REQUIRE(kv.Admit(kC, kv.Match(mine.view(), 8), 8));
  for (int32_t b : Blocks(kv, kC)) {
    CHECK(b != Blocks(kv, kB)[0]);
    CHECK(b != Blocks(kv, kB)[1]);
  }
}

TEST_CASE("a block whose colliding parent took another's place is no hit, and gives way") {
  KvManager kv(Config(12));
  const OwnedChain mine(Count(0, 8), kBlockSize);
  Run(kv, kA, mine);
  kv.Forget(BlockId{Blocks(kv, kA)[0]});  // its child stays, an orphan
  // The same first hash over other tokens, and a second block of equal tokens that hashes alike.
  OwnedChain forged(Count(0, 8), kBlockSize);
  forged.tokens[1] = 99;
  REQUIRE(kv.Admit(kB, {}, 4));
  kv.Publish(kB, forged.view(), 4);
  CHECK(kv.Match(forged.view(), 8).tokens == 4);
  REQUIRE(kv.Grow(kB, 8));
  kv.Publish(kB, forged.view(), 8);
  kv.CheckInvariants();
  CHECK(kv.Match(forged.view(), 8).tokens == 8);
  CHECK_FALSE(kv.map().Contains(BlockId{Blocks(kv, kA)[1]}));
}

TEST_CASE("every token of a block of several units is compared") {
  KvConfig config = Config(20);
  config.groups = {{.block_size = 8}, {.block_size = 4}};
  KvManager kv(config);
  OwnedChain mine(Count(0, 16), 4);
  REQUIRE(kv.Admit(kA, {}, 16));
  kv.Publish(kA, mine.view(), 16);
  CHECK(kv.Match(mine.view(), 16).tokens == 16);
  OwnedChain forged = mine;
  forged.tokens[9] = 99;  // in the third unit, whose hash says otherwise
  CHECK(kv.Match(forged.view(), 16).tokens == 8);
}

TEST_CASE("a window behind a prefix that was forged is no hit") {
  KvConfig config = Config(40);
  const GroupSpec sliding{.kind = GroupKind::kSlidingWindow, .block_size = 4, .window = 4};
  config.groups = {sliding, {.block_size = 4}};
  KvManager kv(config);
  const OwnedChain mine(Count(0, 12), 4);
  REQUIRE(kv.Admit(kA, {}, 12));
  kv.Publish(kA, mine.view(), 12);
  // All that full attention holds of the prefix goes, and a forged one with equal hashes comes.
  for (int32_t entry : kv.blocks(kA, 1)) kv.Forget(kv.pool().FromTable(entry, 1));
  OwnedChain forged = mine;
  forged.tokens[1] = 99;
  REQUIRE(kv.Admit(kB, {}, 12));
  for (int32_t entry : kv.blocks(kB, 0))
    CHECK_FALSE(kv.map().Contains(kv.pool().FromTable(entry, 0)));
  kv.Publish(kB, forged.view(), 12);
  kv.CheckInvariants();
  // The window's last block is there, with equal hash and tokens, but follows another prefix.
  CHECK(kv.map().Contains(kv.pool().FromTable(kv.blocks(kA, 0)[2], 0)));
  CHECK(kv.Match(forged.view(), 12).tokens == 0);
}

TEST_CASE("reset forgets everything, and refuses while a slot holds a block") {
  KvManager kv(Config(10));
  const OwnedChain chain(Count(0, 8), kBlockSize);
  Run(kv, kA, chain);
  CHECK_FALSE(kv.Reset());
  CHECK(kv.Match(chain.view(), 8).tokens == 8);
  Finish(kv, kA);
  CHECK(kv.Reset());
  kv.CheckInvariants();
  CHECK(kv.map().size() == 0);
  CHECK(kv.free_blocks() == 9);
  CHECK(kv.Match(chain.view(), 8).tokens == 0);
}

TEST_CASE("without prefix caching nothing is filed and nothing matches") {
  KvConfig config = Config(10);
  config.enable_prefix_caching = false;
  KvManager kv(config);
  const OwnedChain chain(Count(0, 8), kBlockSize);
  Run(kv, kA, chain);
  CHECK(kv.map().size() == 0);
  CHECK(kv.Match(chain.view(), 8).tokens == 0);
}

std::vector<KvEvent> Events(KvManager& kv) {
  std::vector<KvEvent> events;
  kv.events().Take(&events);
  return events;
}

TEST_CASE("stored and removed events name content: the first and the last copy of it") {
  KvManager kv(Config(4, true));
  const OwnedChain chain(Count(0, 4), kBlockSize);
  // Two copies: both requests ran before either could hit the other.
  REQUIRE(kv.Admit(kA, {}, 4));
  REQUIRE(kv.Admit(kB, {}, 4));
  kv.Publish(kA, chain.view(), 4);
  kv.Publish(kB, chain.view(), 4);
  auto events = Events(kv);
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == KvEventKind::kStored);
  CHECK(events[0].tokens == chain.tokens);
  CHECK(events[0].hash[0] == chain.hashes[0].lo);
  CHECK(events[0].parent[1] == chain.root.hi);

  Finish(kv, kA);
  Finish(kv, kB);
  REQUIRE(kv.Admit(kC, {}, 8));  // takes the unhashed block and one copy
  CHECK(Events(kv).empty());
  CHECK(kv.Match(chain.view(), 4).tokens == 4);
  REQUIRE(kv.Grow(kC, 12));  // takes the other
  events = Events(kv);
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == KvEventKind::kRemoved);
  CHECK(events[0].hash[0] == chain.hashes[0].lo);
}

TEST_CASE("cached content is one stored event for each content, prefixes first") {
  KvManager kv(Config(8, true));
  const OwnedChain chain(Count(0, 8), kBlockSize);
  REQUIRE(kv.Admit(kA, {}, 8));
  REQUIRE(kv.Admit(kB, {}, 8));
  kv.Publish(kA, chain.view(), 8);
  kv.Publish(kB, chain.view(), 8);
  std::vector<KvEvent> content;
  kv.CachedContent(&content);
  REQUIRE(content.size() == 2);
  CHECK(content[0].start == 0);
  CHECK(content[1].start == kBlockSize);
  CHECK(content[1].parent[0] == content[0].hash[0]);
  CHECK(content[1].tokens == Count(kBlockSize, kBlockSize));
  CHECK(Events(kv).size() == 2);
}

TEST_CASE("stored events and cached content say what tells a block from others of its tokens") {
  KvManager kv(Config(8, true));
  const OwnedChain chain(Count(0, 12), kBlockSize, "tenant");
  KvExtraKeys keys{"tenant", {{{1, 2}, 3, 2}, {{3, 4}, 6, 1}}};
  PrefixChain view = chain.view();
  view.extra = &keys;
  const auto publish = [&](RowSlot slot) {
    REQUIRE(kv.Admit(slot, {}, 12));
    kv.Publish(slot, view, 12);
  };
  const auto check = [](const std::vector<KvEvent>& events) {
    REQUIRE(events.size() == 3);
    REQUIRE(events[0].extra);
    CHECK(events[0].extra->salt == "tenant");
    REQUIRE(events[0].extra->items.size() == 1);
    CHECK(events[0].extra->items[0].start == 3);
    // The first item reaches into the second block, and began one token before it.
    REQUIRE(events[1].extra);
    CHECK(events[1].extra->salt.empty());
    REQUIRE(events[1].extra->items.size() == 2);
    CHECK(events[1].extra->items[0].start == -1);
    CHECK(events[1].extra->items[0].length == 2);
    CHECK(events[1].extra->items[1].hash[1] == 4);
    CHECK(events[1].extra->items[1].start == 2);
    CHECK_FALSE(events[2].extra);
  };
  const auto content = [&] {
    std::vector<KvEvent> events;
    kv.CachedContent(&events);
    return events;
  };
  publish(kA);
  publish(kB);
  check(Events(kv));
  check(content());
  const auto forget = [&](RowSlot slot) {
    for (int32_t entry : kv.blocks(slot)) kv.Forget(kv.pool().FromTable(entry, 0));
  };
  forget(kA);  // what is left is the copy
  check(content());
  forget(kB);
  CHECK(content().empty());

  // A block says nothing of what it held before.
  Events(kv);
  const OwnedChain plain(Count(0, 12), kBlockSize);
  kv.Publish(kA, plain.view(), 12);
  for (const KvEvent& e : Events(kv)) CHECK_FALSE(e.extra);
  for (const KvEvent& e : content()) CHECK_FALSE(e.extra);
}

TEST_CASE("a reset is one event") {
  KvManager kv(Config(6, true));
  Run(kv, kA, OwnedChain(Count(0, 8), kBlockSize));
  Finish(kv, kA);
  Events(kv);
  REQUIRE(kv.Reset());
  const auto events = Events(kv);
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == KvEventKind::kCleared);
}

TEST_CASE("a full event log drops the newest events and counts them") {
  KvEventLog log(true, 1);
  const std::vector<int32_t> tokens{1};
  const PrefixKey key{{1, 2}, {3, 4}, 0, tokens};
  const auto store = [&] { log.Filed(BlockId{0}, key, nullptr, true); };
  for (size_t i = 0; i < KvEventLog::kCapacity + 3; ++i) store();
  CHECK(log.dropped() == 3);
  std::vector<KvEvent> events;
  log.Take(&events);
  CHECK(events.size() == KvEventLog::kCapacity);
  CHECK(Index(events.front().block) == 0);
  store();
  log.Take(&events);
  CHECK(events.size() == 1);
}

}  // namespace
}  // namespace octavo::kv
