// CacheGroup: how one kind of attention uses blocks. Layers that share block tables form a group.
//
// A group answers questions; it owns no blocks. The manager asks every group before it commits
// anything, so that one call can grow all of them or none.
#pragma once

#include <cstdint>
#include <span>

#include "kv/prefix_map.h"

namespace octavo::kv {

// The chain of a request's full blocks, as far as its tokens are known.
struct PrefixChain {
  std::span<const int32_t> tokens;
  std::span<const Hash128> hashes;  // one a full block
  Hash128 root;
};

class CacheGroup {
 public:
  virtual ~CacheGroup() = default;

  virtual int32_t block_size() const = 0;
  // Blocks in the table of a request of `tokens` tokens, those outside a window included.
  virtual int32_t BlocksFor(int32_t tokens) const = 0;
  // The longest prefix of at most `max_tokens` tokens that the map holds, whole blocks. Writes
  // their ids to `hits` (REQUIRES: room for BlocksFor(max_tokens)) and returns their number.
  virtual int32_t Match(const PrefixMap& map, const PrefixChain& chain, int32_t max_tokens,
                        BlockId* hits) const = 0;
};

}  // namespace octavo::kv
