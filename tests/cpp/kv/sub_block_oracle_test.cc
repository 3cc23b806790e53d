// Hits that end inside a block, against brute force over everything that was ever filed.
#include <algorithm>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"
#include "kv/chain.h"
#include "kv/kv_manager.h"

namespace octavo::kv {
namespace {

constexpr RowSlot kSlot{0};
constexpr int32_t kLongest = 48;
constexpr const char* kSalts[] = {"", "tenant"};

int32_t Below(std::mt19937& random, int32_t n) { return int32_t(random() % uint32_t(n)); }

// What a block was filed with, in the order of filing.
struct Filed {
  int group;
  BlockId block;
  std::string_view salt;
  std::vector<int32_t> prefix;  // all tokens up to the block's last
  int32_t start;
};

struct World {
  explicit World(uint32_t seed) : random(seed) {
    config.num_blocks = 400;
    config.num_slots = 1;
    config.max_tokens_per_slot = 64;
    config.sub_block_hits = true;
    size = 2 << Below(random, 4);
    const int32_t groups = 1 + Below(random, 3);
    for (int32_t g = 0; g < groups; ++g) {
      config.groups.push_back({.block_size = size, .split = 1 + Below(random, 2)});
    }
  }

  // Few tokens, and one that most sequences begin with, so that many share a beginning.
  std::vector<int32_t> Sequence() {
    std::vector<int32_t> tokens(1 + Below(random, kLongest));
    for (auto& t : tokens) t = Below(random, 12) == 0 ? 1 : 0;
    return tokens;
  }

  // Runs a sequence in a step of its own and notes what that filed.
  void Run(KvManager& kv) {
    const std::string_view salt = kSalts[Below(random, 4) == 0];
    const OwnedChain chain(Sequence(), size, salt);
    const int32_t n = int32_t(chain.tokens.size());
    std::vector<BlockId> published;
    std::vector<BlockCopy> copies;
    kv.BeginStep(&published, &copies);
    REQUIRE(kv.Admit(kSlot, kv.Match(chain.view(), n - 1), n));
    kv.Publish(kSlot, chain.view(), n);
    kv.EndCopies(copies);
    kv.PublishTail(kSlot, chain.view(), n);
    for (int g = 0; g < kv.num_groups(); ++g) {
      const auto entries = kv.blocks(kSlot, g);
      for (int32_t i = 0; i < int32_t(entries.size()); ++i) {
        const auto end = chain.tokens.begin() + std::min(n, (i + 1) * size);
        const BlockId b = kv.pool().FromTable(entries[i], g);
        const std::vector<int32_t> prefix(chain.tokens.begin(), end);
        // What a block was noted with that was not filed then, it no longer holds.
        std::erase_if(filed, [&](const Filed& f) {
          return f.block == b && (f.group != g || f.prefix != prefix || f.salt != salt);
        });
        filed.push_back({g, b, salt, prefix, i * size});
      }
    }
    kv.Release(kSlot);
    kv.ClearRow(kSlot);
    kv.CheckInvariants();
  }

  bool Whole(const Filed& f) const { return int32_t(f.prefix.size()) == f.start + size; }

  // Whether a group holds the whole block of these tokens that starts at `start`.
  bool Holds(const KvManager& kv, int g, std::string_view salt, std::span<const int32_t> tokens,
             int32_t start) const {
    return std::any_of(filed.begin(), filed.end(), [&](const Filed& f) {
      return f.group == g && f.start == start && f.salt == salt && Whole(f) &&
             kv.map().Contains(f.block) &&
             std::equal(f.prefix.begin(), f.prefix.end(), tokens.begin());
    });
  }

  // How many tokens from `start` on the best block of a group begins with. Of copies only the first
  // that was filed counts.
  int32_t Begun(const KvManager& kv, int g, std::string_view salt, std::span<const int32_t> tokens,
                int32_t start) const {
    int32_t best = 0;
    for (size_t i = 0; i < filed.size(); ++i) {
      const Filed& f = filed[i];
      const auto same = [&](const Filed& other) {
        return other.group == g && other.salt == f.salt && other.prefix == f.prefix;
      };
      const bool copy = std::any_of(filed.begin(), filed.begin() + ptrdiff_t(i), same);
      if (f.group != g || f.start != start || f.salt != salt || copy) continue;
      if (!kv.map().Contains(f.block) ||
          !std::equal(f.prefix.begin(), f.prefix.begin() + start, tokens.begin())) {
        continue;
      }
      const auto most = std::min(f.prefix.size(), tokens.size());
      const auto end = f.prefix.begin() + ptrdiff_t(most);
      const auto differs = std::mismatch(f.prefix.begin(), end, tokens.begin()).first;
      best = std::max(best, int32_t(differs - f.prefix.begin()) - start);
    }
    return best;
  }

  std::mt19937 random;
  KvConfig config;
  int32_t size = 0;
  std::vector<Filed> filed;
};

TEST_CASE("a hit inside a block equals the longest that all groups begin, by brute force") {
  int partial = 0;
  int trimmed = 0;
  for (uint32_t seed = 1; seed <= 1000; ++seed) {
    CAPTURE(seed);
    World w(seed);
    KvManager kv(w.config);
    for (int32_t i = 1 + Below(w.random, 7); i > 0; --i) w.Run(kv);
    const int32_t percent = Below(w.random, 30);
    for (const Filed& f : w.filed) {
      if (Below(w.random, 100) < percent) kv.Forget(f.block);
    }
    std::vector<BlockId> published;
    std::vector<BlockCopy> copies;
    kv.BeginStep(&published, &copies);

    const std::string_view salt = kSalts[Below(w.random, 4) == 0];
    const OwnedChain chain(w.Sequence(), w.size, salt);
    const int32_t cap = Below(w.random, int32_t(chain.tokens.size()) + 1);
    const auto all = [&](int32_t start) {
      for (int g = 0; g < kv.num_groups(); ++g) {
        if (!w.Holds(kv, g, salt, chain.tokens, start)) return false;
      }
      return true;
    };
    int32_t whole = 0;
    while (whole + w.size <= cap && all(whole)) whole += w.size;
    const int32_t most = std::min(cap - whole, w.size - 1);
    int32_t begun = most;
    for (int g = 0; g < kv.num_groups(); ++g) {
      const auto wanted = std::span(chain.tokens).first(size_t(whole + most));
      begun = std::min(begun, w.Begun(kv, g, salt, wanted, whole));
    }
    const bool worth = begun >= std::max(1, w.size / 4) || begun == cap - whole;

    const auto hit = kv.Match(chain.view(), cap);
    REQUIRE(hit.tokens == whole);
    REQUIRE(hit.partial == (worth ? begun : 0));
    partial += hit.partial > 0;
    trimmed += begun > 0 && !worth;
    if (hit.partial == 0) continue;
    REQUIRE(kv.Admit(kSlot, hit, whole + hit.partial));
    REQUIRE(int32_t(copies.size()) == kv.num_groups());
    for (const BlockCopy& copy : copies) {
      REQUIRE(copy.tokens == begun);
      const auto key = kv.map().KeyOf(copy.source);
      REQUIRE(key.group == copy.group);
      REQUIRE(key.start == whole);
      REQUIRE(
          std::equal(key.tokens.begin(), key.tokens.begin() + begun, chain.tokens.begin() + whole));
    }
    kv.EndCopies(copies);
    kv.CheckInvariants();
  }
  CHECK(partial > 250);
  CHECK(trimmed > 10);
}

}  // namespace
}  // namespace octavo::kv
