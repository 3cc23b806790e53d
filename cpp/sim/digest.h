// The arithmetic of the hash model: what a token's cache entry is made of, and what it shows to
// those who may see it. HashModel reads it back through block tables; Oracle keeps it in order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "octavo/config.h"

namespace octavo::sim {

inline uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = (a ^ (b + 0x9E3779B97F4A7C15ull)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 29)) * 0x94D049BB133111EBull;
  return x ^ (x >> 32);
}

// A slot of the cache. An empty one differs from every token's.
struct Cell {
  uint64_t digest = 0;
  int32_t token = -1;
  int32_t position = -1;
};

// What a cell adds to the sum that its reader sees: a sum, so that the oracle can take a window as
// the difference of two prefixes.
inline uint64_t Shown(const Cell& cell) {
  return Mix(cell.digest, uint64_t(uint32_t(cell.token)) << 32 | uint32_t(cell.position));
}

// A token's digest starts from this; each group's part is mixed in, in order.
inline uint64_t TokenDigest(int32_t token, int32_t position) {
  return uint64_t(uint32_t(token)) << 32 | uint32_t(position);
}

// What an encoder makes of one place of an item: a cell that every token of a request sees.
inline Cell EncodedCell(uint64_t content, int32_t index) {
  return {Mix(content, uint64_t(index)), 0, index};
}

// A NaN: whoever reads it becomes one, and a sample that sees one fails.
inline constexpr uint64_t kNan = 0x4E614E614E614E61ull;

// The same of a token that an image stands for: the token itself does not matter. Where the image's
// tokens see each other it sees those from `offset` to `end` of the span (the cache shows it those
// before).
inline uint64_t EmbeddedDigest(uint64_t content, int32_t offset, int32_t end, int32_t position) {
  uint64_t seen = 0;
  for (int32_t i = offset; i < end; ++i) seen += Mix(content, uint64_t(i) + 1);
  return Mix(seen, uint64_t(position));
}

// A recurrent state as the next token meets it, and after that token.
inline uint64_t StateBefore(uint64_t state) { return Mix(state, 1); }
inline uint64_t StateAfter(uint64_t before, uint64_t digest) { return Mix(before, digest); }

// The first position that a query sees, but for the sink.
inline int32_t FirstSeen(const GroupSpec& spec, int32_t query) {
  switch (spec.kind) {
    case GroupKind::kSlidingWindow:
      return std::max(0, query - spec.window + 1);
    case GroupKind::kChunkedLocal:
      return query - query % spec.window;
    default:
      return 0;
  }
}

// The digest of a sample that is not greedy.
inline uint64_t Drawn(uint64_t digest, uint64_t seed, uint64_t sample_index) {
  return Mix(digest, Mix(seed, sample_index));
}

}  // namespace octavo::sim
