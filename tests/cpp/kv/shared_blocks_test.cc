#include "kv/shared_blocks.h"

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "kv/chain.h"
#include "kv/kv_manager.h"

namespace octavo::kv {
namespace {

constexpr int32_t kBlockSize = 64;
constexpr int32_t kFirst =
    SharedBlocks::kLeastTokens / kBlockSize;  // blocks of the shortest prefix
constexpr int32_t kLeast = SharedBlocks::kLeastRequests;

TEST_CASE("what fewer than four requests hit counts for nothing") {
  SharedBlocks shared(kBlockSize, 100, 8);
  const std::vector<int32_t> hit = Count(1, kFirst + 2);
  const int64_t tokens = (kFirst + 2) * kBlockSize;
  for (int32_t n = 1; n <= 6; ++n) {
    shared.Enter(RowSlot{n}, hit);
    CHECK(shared.tokens() == (n < kLeast ? 0 : n * tokens));
  }
  // Whoever leaves first takes what it added, also the first that came.
  for (int32_t n = 1; n <= 6; ++n) {
    shared.Leave(RowSlot{n}, hit);
    CHECK(shared.tokens() == (6 - n < kLeast ? 0 : (6 - n) * tokens));
    shared.Leave(RowSlot{n}, hit);  // it has left
  }
}

TEST_CASE("a prefix counts from 256 tokens on, and then from its start") {
  for (const int32_t block_size : {1, 16, 64, 256}) {
    const int32_t blocks = SharedBlocks::kLeastTokens / block_size;
    for (const int32_t more : {-1, 0, 1}) {
      SharedBlocks shared(block_size, 400, kLeast);
      const std::vector<int32_t> hit = Count(1, blocks + more);
      for (int32_t n = 0; n < kLeast; ++n) shared.Enter(RowSlot{n}, hit);
      CHECK(shared.tokens() == (more < 0 ? 0 : kLeast * (blocks + more) * block_size));
    }
  }
}

TEST_CASE("requests share as far as they go together") {
  SharedBlocks shared(kBlockSize, 100, 8);
  // Eight share the shortest prefix that counts; four of them a block more.
  for (int32_t n = 0; n < 8; ++n) {
    std::vector<int32_t> hit = Count(1, kFirst);
    hit.push_back(n % 2 == 0 ? 50 : 60 + n);
    shared.Enter(RowSlot{n}, hit);
  }
  CHECK(shared.tokens() == 8 * kFirst * kBlockSize + 4 * kBlockSize);
}

TEST_CASE("under random requests the count is that of a map of blocks") {
  constexpr int32_t kSlots = 20;
  SharedBlocks shared(kBlockSize, 120, kSlots);
  std::vector<std::vector<int32_t>> rows(kSlots);
  std::mt19937 random(3);
  const auto draw = [&](uint32_t end) { return int32_t(random() % end); };
  const auto row_of = [&](RowSlot slot) { return std::span<const int32_t>(rows[Index(slot)]); };
  int32_t sharing = 0;
  for (int32_t round = 0; round < 4000; ++round) {
    const RowSlot slot{draw(kSlots)};
    std::vector<int32_t>& row = rows[Index(slot)];
    if (row.empty()) {
      // A tree of prefixes: two first parts, and from a random length on blocks that fewer have.
      row = Count(1 + 20 * draw(2), draw(2 * kFirst + 2));
      for (int32_t i = draw(2 * kFirst + 2); i < int32_t(row.size()); ++i)
        row[i] += 40 * (1 + draw(2));
      shared.Enter(slot, row);
      row.push_back(0);  // what it takes fresh
    } else {
      shared.Leave(slot, row);
      row.clear();
    }
    std::map<std::pair<size_t, int32_t>, int32_t> holders;
    for (const auto& held : rows) {
      for (size_t i = kFirst - 1; i + 1 < held.size(); ++i) ++holders[{i, held[i]}];
    }
    int64_t expected = 0;
    for (const auto& [block, count] : holders) {
      if (count < kLeast) continue;
      expected += count * (block.first + 1 == kFirst ? kFirst : 1) * kBlockSize;
    }
    REQUIRE(shared.tokens() == expected);
    shared.CheckInvariants(row_of);
    sharing += expected > 0;
  }
  CHECK(sharing > 500);
}

// Admits the chain into every slot, one after another, with what is cached of it; returns what they
// share then.
int64_t SharedBy(KvManager& kv, int32_t slots, const OwnedChain& chain) {
  for (int32_t s = 0; s < slots; ++s) {
    const int32_t tokens = int32_t(chain.tokens.size());
    REQUIRE(kv.Admit(RowSlot{s}, kv.Match(chain.view(), tokens - 1), tokens));
    kv.Publish(RowSlot{s}, chain.view(), tokens);
    kv.CheckInvariants();
  }
  return kv.shared_tokens();
}

KvConfig Config(std::vector<GroupSpec> groups) {
  KvConfig config;
  config.num_blocks = 200;
  config.block_size = kBlockSize;
  config.num_slots = 8;
  config.max_tokens_per_slot = 640;
  config.groups = std::move(groups);
  return config;
}

TEST_CASE("the blocks of one group of full attention count, and those of no other") {
  const GroupSpec full{.block_size = kBlockSize};
  const GroupSpec latent{.kind = GroupKind::kLatent, .block_size = kBlockSize};
  const GroupSpec window{
      .kind = GroupKind::kSlidingWindow, .block_size = kBlockSize, .window = 600};
  const OwnedChain chain(Count(0, 400), kBlockSize);
  const int64_t whole = 400 / kBlockSize * kBlockSize;
  // Whoever came first computed the prefix: five of six hit it.
  for (const auto& groups : std::vector<std::vector<GroupSpec>>{
           {}, {full}, {latent}, {window, full}, {full, full}, {full, window}}) {
    KvManager kv(Config(groups));
    CHECK(SharedBy(kv, 6, chain) == 5 * whole);
  }
  KvManager windows(Config({window}));
  CHECK(SharedBy(windows, 6, chain) == 0);
  KvConfig uncached = Config({});
  uncached.enable_prefix_caching = false;
  KvManager none(uncached);
  CHECK(SharedBy(none, 6, chain) == 0);
}

TEST_CASE("an admission that does not fit shares nothing") {
  KvManager kv(Config({}));
  const OwnedChain chain(Count(0, 400), kBlockSize);
  CHECK(SharedBy(kv, 4, chain) == 0);
  const auto hit = kv.Match(chain.view(), 399);
  CHECK_FALSE(kv.Admit(RowSlot{4}, hit, 400, {}, 200));
  CHECK(kv.shared_tokens() == 0);
  CHECK(kv.Admit(RowSlot{4}, hit, 400));
  CHECK(kv.shared_tokens() == 4 * 384);
  kv.Release(RowSlot{0});  // who computed it
  CHECK(kv.shared_tokens() == 4 * 384);
  kv.Release(RowSlot{4});
  CHECK(kv.shared_tokens() == 0);
  kv.CheckInvariants();
}

}  // namespace
}  // namespace octavo::kv
