// CrossGroup: the keys and values of what an encoder made of a request's item. Every token sees all
// of them, so their blocks are taken whole when the request is admitted and none of them dies
// before it ends; how far the request has come changes nothing.
//
// The blocks hold embeddings, not tokens: nothing of a prompt is found in them, and they are found
// by their item alone. One item of a salt is one content: all blocks of all cross groups are hit,
// or none is.
#pragma once

#include "kv/cache_group.h"

namespace octavo::kv {

class CrossGroup final : public CacheGroup {
 public:
  CrossGroup(const GroupSpec& spec, int index)
      : CacheGroup(index, spec.block_size, spec.block_size, /*cross=*/true) {}

  int32_t FirstLive(int32_t) const override { return 0; }
  // Tokens need none.
  int32_t Peak(int32_t, const Ahead&) const override { return 0; }
  int32_t Match(const PrefixMap&, const PrefixChain&, int32_t tokens, int32_t, const Links&,
                BlockId*) const override {
    return tokens;
  }
};

}  // namespace octavo::kv
