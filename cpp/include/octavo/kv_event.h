// KvEvent: a change of what the prefix cache holds, for routers and tests.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "octavo/ids.h"

namespace octavo {

enum class KvEventKind : uint8_t { kStored, kRemoved, kCleared };

// An image or audio clip that overlaps a block.
struct KvItemKey {
  uint64_t hash[2];  // of the item, see EncoderItem
  int32_t start;     // its first token, counted from the block's; negative: the item began before
  int32_t length;    // tokens of all of its span
};

// What identifies the content of a block besides its tokens and what stands before it.
struct KvExtraKeys {
  std::string salt;              // of a sequence's first block
  std::vector<KvItemKey> items;  // in order of their spans

  bool empty() const { return salt.empty() && items.empty(); }
};

// What happened to the prefix cache, for routers. kStored and kRemoved name content: the first and
// the last copy of it.
struct KvEvent {
  KvEventKind kind;
  int32_t group;
  BlockId block;
  uint64_t hash[2];
  uint64_t parent[2];  // of the content before it; meaningless when `start` is 0
  int32_t start;       // position of the block's first token in its sequence
  // Of a stored block. In a cross group, whose blocks hold no tokens, what identifies it: its
  // item's hash in four words, the item's embeddings, and its place; `start` then counts
  // embeddings.
  std::vector<int32_t> tokens;
  std::shared_ptr<const KvExtraKeys> extra;  // of a stored block; null: its tokens say all
};

}  // namespace octavo
