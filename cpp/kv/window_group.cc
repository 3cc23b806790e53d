#include "kv/window_group.h"

#include <algorithm>

namespace octavo::kv {

int32_t WindowGroup::FirstLive(int32_t processed) const {
  // The next query stands at `processed`; the oldest key it sees starts the live blocks.
  const int32_t oldest =
      chunked_ ? processed / window_ * window_ : std::max(0, processed - window_ + 1);
  return std::max(head_, oldest / block_size());
}

int32_t WindowGroup::Peak(int32_t tokens, const Ahead& ahead) const {
  // Until its steps have run, a chunk's blocks and the window before it are held; either end may be
  // ragged.
  const int64_t span = int64_t{window_} + std::min(ahead.tokens, tokens);
  const int64_t most = head_ + (span + block_size() - 1) / block_size() + 1;
  return static_cast<int32_t>(std::min<int64_t>(most, Entries(tokens)));
}

int32_t WindowGroup::Match(const PrefixMap& map, const PrefixChain& chain, int32_t tokens,
                           int32_t align, const Links& links, BlockId* hits) const {
  const int32_t limit = std::min(tokens / block_size(), Covered(chain));
  const int32_t head = MatchRun(map, chain, std::min(head_, limit), links, hits);
  if (head < head_) return head * block_size() / align * align;

  // From the right: blocks [run, end) are there. A candidate whose live blocks all are is the
  // answer; a missing block rules out every candidate that would need it.
  int32_t end = limit * block_size() / align * align / block_size();
  int32_t run = end;
  while (end > head_) {
    const int32_t first = std::min(end, FirstLive(end * block_size()));
    while (run > first) {
      hits[run - 1] = map.Find(KeyOf(chain, run - 1, links.Before(run - 1)));
      if (hits[run - 1] == kNoBlock) break;
      --run;
    }
    if (run <= first) {
      std::fill(hits + head_, hits + first, kNoBlock);
      return end * block_size();
    }
    end = (run - 1) * block_size() / align * align / block_size();
    run = std::min(run - 1, end);
  }
  return std::max(0, std::min(end, head_)) * block_size() / align * align;
}

}  // namespace octavo::kv
