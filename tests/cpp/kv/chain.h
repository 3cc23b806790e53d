// A prefix chain that owns its tokens, for tests without a request.
#pragma once

#include <cstdint>
#include <numeric>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "kv/cache_group.h"

namespace octavo::kv {

inline constexpr uint64_t kTestSeed = 7;

struct OwnedChain {
  OwnedChain(std::vector<int32_t> t, int32_t block_size, std::string_view salt = {})
      : tokens(std::move(t)) {
    const ChainHasher hasher(kTestSeed);
    root = hasher.Root(salt);
    Hash128 parent = root;
    const std::span<const int32_t> all(tokens);
    for (size_t at = 0; at + block_size <= all.size(); at += block_size) {
      parent = hasher.Next(parent, all.subspan(at, block_size));
      hashes.push_back(parent);
    }
  }
  PrefixChain view() const { return {tokens, hashes, root}; }

  std::vector<int32_t> tokens;
  std::vector<Hash128> hashes;
  Hash128 root;
};

// first, first + 1, ...
inline std::vector<int32_t> Count(int32_t first, int32_t count) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

}  // namespace octavo::kv
