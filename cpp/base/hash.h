// The chain hash of the prefix map.
//
// A block's hash covers its parent's hash, the extra keys (multimodal content, adapters) and its
// token ids in a fixed little-endian layout, so equal hashes mean equal prefixes. In process it is
// XXH3-128 with a secret seed; the prefix map compares stored tokens besides, so a collision costs
// a miss, never wrong KV.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "octavo/hash128.h"

namespace octavo {

class ChainHasher {
 public:
  explicit ChainHasher(uint64_t seed) : seed_(seed) {}

  // The parent of a request's first block. Different salts never share a chain.
  Hash128 Root(std::string_view salt) const;

  // REQUIRES: tokens.size() <= kMaxBlockSize.
  Hash128 Next(const Hash128& parent, std::span<const int32_t> tokens,
               std::span<const std::byte> extra = {}) const;

 private:
  uint64_t seed_;
};

// A seed nobody outside the process can guess.
uint64_t RandomSeed();

}  // namespace octavo
