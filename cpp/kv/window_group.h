// WindowGroup: tokens see a bounded past, so blocks behind it are given back while the request
// runs.
//
// Sliding window: query q sees keys in (q - window, q]. Chunked local: q sees its own chunk of
// `window` tokens. Either way the first `sink` tokens stay visible. A prefix hit needs only the
// blocks that a token right after it still reads, and the sink's.
#pragma once

#include "kv/cache_group.h"

namespace octavo::kv {

class WindowGroup final : public CacheGroup {
 public:
  WindowGroup(const GroupSpec& spec, int index, int32_t unit)
      : CacheGroup(index, spec.block_size, unit),
        window_(spec.window),
        chunked_(spec.kind == GroupKind::kChunkedLocal),
        head_(Entries(spec.sink)) {}

  int32_t Head() const override { return head_; }
  int32_t FirstLive(int32_t processed) const override;
  int32_t Peak(int32_t tokens, const Ahead& ahead) const override;
  int32_t Match(const PrefixMap& map, const PrefixChain& chain, int32_t tokens, int32_t align,
                const Links& links, BlockId* hits) const override;

 private:
  int32_t window_;
  bool chunked_;
  int32_t head_;
};

}  // namespace octavo::kv
