#include "base/hash.h"

#include <xxhash.h>  // the build defines XXH_INLINE_ALL: header only

#include <algorithm>
#include <bit>
#include <cstring>
#include <random>

#include "base/check.h"
#include "octavo/config.h"

namespace octavo {
namespace {

static_assert(std::endian::native == std::endian::little, "the layout below is little-endian");

// Raised whenever the layout below changes.
constexpr uint32_t kLayoutVersion = 1;

struct Header {
  uint32_t version;
  uint32_t num_tokens;
  Hash128 parent;
  Hash128 extra;  // zero without extra keys
};
static_assert(sizeof(Header) == 40, "no padding may enter the hash");

Hash128 FromXxh(XXH128_hash_t h) { return {h.low64, h.high64}; }

}  // namespace

Hash128 ChainHasher::Root(std::string_view salt) const {
  // The length in front keeps an empty salt apart from every other input.
  const uint64_t length = salt.size();
  const uint64_t keyed = seed_ ^ XXH3_64bits_withSeed(&length, sizeof(length), seed_);
  return FromXxh(XXH3_128bits_withSeed(salt.data(), salt.size(), keyed));
}

Hash128 ChainHasher::Next(const Hash128& parent, std::span<const int32_t> tokens,
                          std::span<const std::byte> extra) const {
  OCTAVO_CHECK(tokens.size() <= kMaxBlockSize, "a block holds at most kMaxBlockSize tokens");
  struct {
    Header header;
    int32_t tokens[kMaxBlockSize];
  } input;
  input.header = {kLayoutVersion, static_cast<uint32_t>(tokens.size()), parent, {}};
  if (!extra.empty()) {
    input.header.extra = FromXxh(XXH3_128bits_withSeed(extra.data(), extra.size(), seed_));
  }
  std::copy(tokens.begin(), tokens.end(), input.tokens);  // none, where only the salt is hashed
  return FromXxh(XXH3_128bits_withSeed(&input, sizeof(Header) + tokens.size_bytes(), seed_));
}

uint64_t RandomSeed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace octavo
