// Hash128: the hash of a prefix. Equal prefixes of one engine have equal hashes; the reverse holds
// only once tokens were compared too.
#pragma once

#include <cstdint>

namespace octavo {

struct Hash128 {
  uint64_t lo = 0;
  uint64_t hi = 0;
  bool operator==(const Hash128&) const = default;
};

}  // namespace octavo
