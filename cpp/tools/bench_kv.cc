// KV memory: prefix lookup on a large pool, taking and releasing blocks, hashing.
#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "base/check.h"
#include "kv/kv_manager.h"
#include "tools/bench.h"

namespace octavo::tools {
namespace {

constexpr int32_t kBlockSize = 16;
constexpr int32_t kChainBlocks = 512;  // prompts of 8,192 tokens
constexpr int32_t kChainTokens = kChainBlocks * kBlockSize;
constexpr uint64_t kSeed = 42;

constexpr double kLookupBudget = 100;  // ns a block
constexpr double kReleaseAim = 5;

struct Chain {
  std::vector<int32_t> tokens;
  std::vector<Hash128> hashes;
  Hash128 root;
  kv::PrefixChain view() const { return {tokens, hashes, root}; }
};

Chain MakeChain(uint32_t which) {
  const ChainHasher hasher(kSeed);
  std::mt19937 random(which);
  Chain chain;
  chain.tokens.resize(kChainTokens);
  for (int32_t& token : chain.tokens) token = int32_t(random() % 128'000);
  chain.root = hasher.Root({});
  Hash128 parent = chain.root;
  for (int32_t b = 0; b < kChainBlocks; ++b) {
    parent = hasher.Next(parent, {&chain.tokens[size_t(b) * kBlockSize], size_t(kBlockSize)});
    chain.hashes.push_back(parent);
  }
  return chain;
}

kv::KvConfig Config(int32_t num_blocks, int32_t num_slots) {
  kv::KvConfig c;
  c.num_blocks = num_blocks;
  c.block_size = kBlockSize;
  c.num_slots = num_slots;
  c.max_tokens_per_slot = kChainTokens;
  return c;
}

// Fills the pool with chains whose blocks lie apart, as they do after many requests grew side by
// side.
void FillWithChains(kv::KvManager& kv, const std::vector<Chain>& chains) {
  const int32_t slots = kv.num_slots();
  for (size_t first = 0; first < chains.size(); first += size_t(slots)) {
    for (int32_t tokens = kBlockSize; tokens <= kChainTokens; tokens += kBlockSize) {
      for (int32_t s = 0; s < slots; ++s) {
        OCTAVO_CHECK(kv.Grow(RowSlot{s}, tokens), "the pool is too small");
      }
    }
    for (int32_t s = 0; s < slots; ++s) {
      kv.Publish(RowSlot{s}, chains[first + size_t(s)].view(), kChainTokens);
      kv.Release(RowSlot{s});
      kv.ClearRow(RowSlot{s});
    }
  }
}

}  // namespace

Measures BenchLookup(const Effort& effort) {
  const int32_t chains = effort.quick ? 64 : 2048;  // 2,048 of 512: a million blocks
  constexpr int32_t kSlots = 64;
  kv::KvManager kv(Config(chains * kChainBlocks + 1, kSlots));
  std::vector<Chain> all;
  for (int32_t i = 0; i < chains; ++i) all.push_back(MakeChain(uint32_t(i)));
  FillWithChains(kv, all);
  std::mt19937 random(1);
  std::vector<int32_t> order(all.size());
  std::iota(order.begin(), order.end(), 0);
  Measures measures;
  for (int round = 0; round < effort.rounds; ++round) {
    std::shuffle(order.begin(), order.end(), random);
    const size_t count = std::min<size_t>(order.size(), 512);
    std::vector<double> times;
    for (size_t i = 0; i < count; ++i) {
      const auto start = BenchClock::now();
      const auto hit = kv.Match(all[order[i]].view(), kChainTokens);
      times.push_back(Nanoseconds(start, BenchClock::now()) / kChainBlocks);
      OCTAVO_CHECK(hit.tokens == kChainTokens, "a cached prefix was missed");
    }
    KeepBest(&measures, {{"lookup_1m_blocks", Percentile(&times, 0.5), "ns/block", kLookupBudget}});
  }
  return measures;
}

Measures BenchBlocks(const Effort& effort) {
  constexpr int32_t kSlots = 64;
  constexpr int32_t kPasses = 8;
  const double blocks = double(kSlots) * kChainBlocks * kPasses;
  std::vector<Chain> chains;
  for (int32_t i = 0; i < kSlots; ++i) chains.push_back(MakeChain(uint32_t(i)));
  kv::KvManager kv(Config(kSlots * kChainBlocks + 1, kSlots));
  Measures measures;
  for (int round = 0; round < effort.rounds; ++round) {
    for (const bool filed : {false, true}) {
      double take = 0, publish = 0, release = 0;
      for (int32_t pass = 0; pass < kPasses; ++pass) {
        const auto start = BenchClock::now();
        for (int32_t s = 0; s < kSlots; ++s) {
          OCTAVO_CHECK(kv.Admit(RowSlot{s}, {}, kChainTokens), "the pool is too small");
        }
        const auto taken = BenchClock::now();
        for (int32_t s = 0; filed && s < kSlots; ++s) {
          kv.Publish(RowSlot{s}, chains[s].view(), kChainTokens);
        }
        const auto published = BenchClock::now();
        for (int32_t s = 0; s < kSlots; ++s) kv.Release(RowSlot{s});
        const auto released = BenchClock::now();
        for (int32_t s = 0; s < kSlots; ++s) kv.ClearRow(RowSlot{s});
        // The first pass with filed blocks still takes unfiled ones.
        if (!filed || pass > 0) take += Nanoseconds(start, taken);
        publish += Nanoseconds(taken, published);
        release += Nanoseconds(published, released);
      }
      if (filed) {
        const double evicted = blocks * (kPasses - 1) / kPasses;
        KeepBest(&measures, {{"evict_and_take", take / evicted, "ns/block"},
                             {"publish", publish / blocks, "ns/block"}});
      } else {
        KeepBest(&measures, {{"take", take / blocks, "ns/block"},
                             {"release", release / blocks, "ns/block", kReleaseAim, false}});
      }
    }
    OCTAVO_CHECK(kv.Reset(), "blocks leaked");
  }
  return measures;
}

Measures BenchHash(const Effort& effort) {
  const ChainHasher hasher(kSeed);
  const Chain chain = MakeChain(1);
  constexpr int32_t kPasses = 200;
  Measures measures;
  for (int round = 0; round < effort.rounds; ++round) {
    Hash128 parent = chain.root;
    const auto start = BenchClock::now();
    for (int32_t pass = 0; pass < kPasses; ++pass) {
      for (int32_t b = 0; b < kChainBlocks; ++b) {
        parent = hasher.Next(parent, {&chain.tokens[size_t(b) * kBlockSize], size_t(kBlockSize)});
      }
    }
    const double total = Nanoseconds(start, BenchClock::now());
    Keep(&parent);
    KeepBest(&measures, {{"hash", total / (kPasses * kChainBlocks), "ns/block"}});
  }
  return measures;
}

}  // namespace octavo::tools
