// Windows and states in the manager: what is given back, what stays findable, where chunks end.
#include <algorithm>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "kv/chain.h"
#include "kv/kv_manager.h"

namespace octavo::kv {
namespace {

constexpr RowSlot kA{0};
constexpr RowSlot kB{1};
constexpr int32_t kPrompt = 22;

const GroupSpec kFull{.block_size = 4};
const GroupSpec kSliding{.kind = GroupKind::kSlidingWindow, .block_size = 4, .window = 6};
const GroupSpec kState{.kind = GroupKind::kState, .block_size = 4};

KvConfig Config(std::vector<GroupSpec> groups, int32_t snapshot_interval = 0) {
  KvConfig config;
  config.num_blocks = 100;
  config.num_slots = 4;
  config.max_tokens_per_slot = 128;
  config.groups = std::move(groups);
  config.snapshot_interval = snapshot_interval;
  return config;
}

// The entries of the table that hold a block.
std::vector<int32_t> Held(const KvManager& kv, RowSlot slot, int group) {
  std::vector<int32_t> held;
  for (int32_t i = 0; i < kv.length(slot, group); ++i) {
    if (kv.blocks(slot, group)[i] != Index(kNullBlock)) held.push_back(i);
  }
  return held;
}

using Entries = std::vector<int32_t>;

// Runs `chain` to its end in chunks of `chunk` tokens, as the scheduler does, the first `prompt`
// tokens being the prompt.
void Run(KvManager& kv, const OwnedChain& chain, int32_t chunk, int32_t prompt) {
  const int32_t n = int32_t(chain.tokens.size());
  for (int32_t at = 0; at < n;) {
    kv.FreeDead(kA, at, prompt);
    const int32_t end =
        at + kv.ClipChunk(KvManager::Hit{}, at, std::min(chunk, n - at), std::max(prompt, at + 1));
    REQUIRE((at == 0 ? kv.Admit(kA, {}, end) : kv.Grow(kA, end)));
    kv.Publish(kA, chain.view(), end);
    kv.PublishStates(kA, chain.view(), end);
    kv.CheckInvariants();
    at = end;
  }
  kv.FreeDead(kA, n, prompt);
  kv.CheckInvariants();
}

void Finish(KvManager& kv, RowSlot slot) {
  kv.Release(slot);
  kv.ClearRow(slot);
  kv.CheckInvariants();
}

TEST_CASE("blocks behind the window go back, on processed tokens only") {
  KvManager kv(Config({kFull, kSliding}));
  REQUIRE(kv.Admit(kA, {}, 24));
  kv.FreeDead(kA, 0, kPrompt);  // 24 tokens in flight
  CHECK(Held(kv, kA, 1) == Entries{0, 1, 2, 3, 4, 5});
  kv.FreeDead(kA, 8, kPrompt);  // the next token stands at 8 and sees 3 to 8
  CHECK(Held(kv, kA, 1) == Entries{0, 1, 2, 3, 4, 5});
  kv.FreeDead(kA, 9, kPrompt);  // 4 to 9
  CHECK(Held(kv, kA, 1) == Entries{1, 2, 3, 4, 5});
  kv.FreeDead(kA, 24, kPrompt);  // 19 to 24
  CHECK(Held(kv, kA, 1) == Entries{4, 5});
  CHECK(Held(kv, kA, 0) == Entries{0, 1, 2, 3, 4, 5});
  CHECK(kv.free_blocks() == 99 - 8);
  kv.CheckInvariants();
}

TEST_CASE("the sink stays, and of chunks only the current one") {
  GroupSpec chunked{.kind = GroupKind::kChunkedLocal, .block_size = 4, .window = 8, .sink = 5};
  KvManager kv(Config({chunked}));
  REQUIRE(kv.Admit(kA, {}, 24));
  kv.FreeDead(kA, 15, kPrompt);
  CHECK(Held(kv, kA, 0) == Entries{0, 1, 2, 3, 4, 5});
  kv.FreeDead(kA, 16, kPrompt);
  CHECK(Held(kv, kA, 0) == Entries{0, 1, 4, 5});
  kv.CheckInvariants();
}

TEST_CASE("a window stays findable where its prompt ended, and nowhere else") {
  KvManager kv(Config({kFull, kSliding}));
  const OwnedChain chain(Count(0, 60), 4);
  Run(kv, chain, 7, kPrompt);
  Finish(kv, kA);
  CHECK(kv.Match(chain.view(), 60).tokens == 60);  // what it held at its end
  CHECK(kv.Match(chain.view(), 59).tokens == kPrompt / 4 * 4);
  CHECK(kv.Match(chain.view(), 19).tokens == 0);
}

TEST_CASE("a window and a state stay findable every interval, rounded down to a boundary") {
  for (const GroupSpec& sparse : {kSliding, kState}) {
    KvManager kv(Config({kFull, sparse}, 18));
    const OwnedChain chain(Count(0, 61), 4);
    Run(kv, chain, 4, 1);
    Finish(kv, kA);
    CHECK(kv.Match(chain.view(), 59).tokens == 48);
    CHECK(kv.Match(chain.view(), 47).tokens == 32);
    CHECK(kv.Match(chain.view(), 31).tokens == 16);
    CHECK(kv.Match(chain.view(), 15).tokens == 0);
  }
}

TEST_CASE("an interval of -1 keeps every window and every state that a chunk ended on") {
  for (const GroupSpec& sparse : {kSliding, kState}) {
    KvManager kv(Config({kFull, sparse}, -1));
    const OwnedChain chain(Count(0, 61), 4);
    Run(kv, chain, 4, 1);
    for (int32_t cap = 60; cap > 0; --cap) CHECK(kv.Match(chain.view(), cap).tokens == cap / 4 * 4);
  }
}

TEST_CASE("a state is filed only where a chunk ended on a boundary, once it is processed") {
  KvManager kv(Config({kFull, kState}));
  const OwnedChain chain(Count(0, 32), 4);
  REQUIRE(kv.Admit(kA, {}, 8));
  kv.Publish(kA, chain.view(), 8);
  CHECK(Held(kv, kA, 1) == Entries{1});  // passed over block 0
  CHECK(kv.Match(chain.view(), 8).tokens == 0);
  kv.PublishStates(kA, chain.view(), 7);
  CHECK(kv.Match(chain.view(), 8).tokens == 0);
  kv.PublishStates(kA, chain.view(), 8);
  CHECK(kv.Match(chain.view(), 8).tokens == 8);
  CHECK(kv.Match(chain.view(), 7).tokens == 0);
  // The next chunk ends inside a block: nothing new, and the snapshot is not written again.
  REQUIRE(kv.Grow(kA, 15));
  CHECK(Held(kv, kA, 1) == Entries{1, 3});
  kv.Publish(kA, chain.view(), 15);
  kv.PublishStates(kA, chain.view(), 15);
  CHECK(kv.Match(chain.view(), 15).tokens == 8);
  // The one after passes block 3's end: its entry holds a state from inside, and stays unfiled.
  kv.FreeDead(kA, 15, 100);
  REQUIRE(kv.Grow(kA, 18));
  kv.Publish(kA, chain.view(), 18);
  kv.PublishStates(kA, chain.view(), 18);
  // The latest state that was let go of is still found, but nothing holds it.
  CHECK(kv.Match(chain.view(), 18).tokens == 8);
  CHECK(Held(kv, kA, 1) == Entries{3, 4});
  // The next one takes its place: of prompt 100, 8 was no end.
  kv.PublishStates(kA, chain.view(), 20);
  REQUIRE(kv.Grow(kA, 24));
  kv.Publish(kA, chain.view(), 24);
  kv.FreeDead(kA, 24, 100);
  CHECK(kv.Match(chain.view(), 19).tokens == 0);
  CHECK(kv.Match(chain.view(), 22).tokens == 20);
  kv.CheckInvariants();
}

TEST_CASE("a short prompt takes blocks in proportion to its tokens, whatever its groups weigh") {
  // As many layers as Gemma 3 4B has (5 of full attention, 29 of windows), and a recurrent one.
  KvConfig config =
      Config({{.block_size = 16, .split = 29},
              {.kind = GroupKind::kSlidingWindow, .block_size = 16, .window = 1024, .split = 5},
              {.kind = GroupKind::kState, .block_size = 16, .split = 3}});
  config.num_slots = 64;
  KvManager kv(config);
  const double parents_each = 1.0 / 29 + 1.0 / 5 + 1.0 / 3;
  for (int32_t n = 1; n <= 64; ++n) {
    REQUIRE(kv.Admit(RowSlot{n - 1}, {}, 12));
    const double used = kv.pool().num_parents() - 1 - kv.free_blocks();
    // At most one parent of each group is partly filled: with 64 prompts 4.5 % is waste.
    CHECK(used <= n * parents_each + 3);
    if (n == 64) CHECK(used / (n * parents_each) < 1.05);
  }
  kv.CheckInvariants();
}

TEST_CASE("packed, a request gives up what it would leave findable behind its window") {
  for (const bool packed : {false, true}) {
    KvManager kv(Config({kFull, kSliding}, -1));
    const OwnedChain chain(Count(0, 40), 4);
    REQUIRE(kv.Admit(kA, {}, 40));
    kv.Publish(kA, chain.view(), 40);
    const int32_t filed = kv.map().size();
    kv.FreeDead(kA, 40, kPrompt, packed);
    CHECK(Held(kv, kA, 1) == Entries{8, 9});
    CHECK(kv.map().size() == (packed ? filed - 8 : filed));
    kv.CheckInvariants();
  }
}

TEST_CASE("a request that hits a state writes into a block of its own") {
  KvManager kv(Config({kFull, kState}));
  const OwnedChain chain(Count(0, 9), 4);
  Run(kv, chain, 8, 9);
  const auto hit = kv.Match(chain.view(), 8);
  REQUIRE(hit.tokens == 8);
  REQUIRE(kv.Admit(kB, hit, 9));
  REQUIRE(Held(kv, kB, 1) == Entries{1, 2});
  CHECK(kv.blocks(kB, 1)[2] != kv.blocks(kA, 1)[2]);
  CHECK(kv.pool().refs(kv.pool().FromTable(kv.blocks(kB, 1)[2], 1)) == 1);
  kv.CheckInvariants();
}

TEST_CASE("chunks end where a state can be resumed from, the last one before the last token") {
  GroupSpec full = kFull;
  full.block_size = 8;
  const KvManager kv(Config({full, kState}));  // boundaries every 8 tokens
  const KvManager::Hit none;
  CHECK(kv.ClipChunk(none, 0, 22, 22) == 16);
  CHECK(kv.ClipChunk(none, 16, 6, 22) == 6);
  CHECK(kv.ClipChunk(none, 0, 16, 16) == 8);  // a hit stops before the last token
  CHECK(kv.ClipChunk(none, 8, 8, 16) == 8);
  CHECK(kv.ClipChunk(none, 0, 5, 22) == 5);  // a boundary is out of reach
  CHECK(kv.ClipChunk(none, 5, 5, 22) == 3);
  CHECK(kv.ClipChunk(none, 0, 13, 22) == 8);
  CHECK(kv.ClipChunk(none, 21, 1, 22) == 1);
  CHECK(KvManager(Config({kFull, kSliding})).ClipChunk(none, 0, 22, 22) == 22);
}

TEST_CASE("chunks end where a prefix parts and at every interval, and nowhere where none is kept") {
  KvConfig config = Config({kFull, kState});  // boundaries every 4 tokens
  const KvManager::Hit parts{.junction = 8};
  CHECK(KvManager(config).ClipChunk(parts, 0, 30, 30) == 8);
  CHECK(KvManager(config).ClipChunk(parts, 8, 22, 30) == 20);
  config.snapshot_interval = 15;  // rounded down to 12
  CHECK(KvManager(config).ClipChunk(parts, 0, 30, 30) == 8);
  CHECK(KvManager(config).ClipChunk(parts, 8, 22, 30) == 4);
  CHECK(KvManager(config).ClipChunk(parts, 12, 18, 30) == 12);
  CHECK(KvManager(config).ClipChunk(parts, 24, 6, 30) == 4);
  config.clip_chunks = false;
  CHECK(KvManager(config).ClipChunk(parts, 0, 30, 30) == 30);
  config.clip_chunks = true;
  config.enable_prefix_caching = false;
  CHECK(KvManager(config).ClipChunk(parts, 0, 30, 30) == 30);
}

}  // namespace
}  // namespace octavo::kv
