#include "kv/block_pool.h"

#include <cstddef>

#include "base/check.h"

namespace octavo::kv {

BlockPool::BlockPool(int32_t num_blocks) {
  OCTAVO_CHECK(num_blocks >= 2, "a pool needs the null block and one to use");
  records_.resize(static_cast<size_t>(num_blocks) + kEvictionClasses);
  for (int c = 0; c < kEvictionClasses; ++c) {
    const int32_t s = sentinel(static_cast<EvictionClass>(c));
    records_[s].prev = records_[s].next = s;
  }
  records_[Index(kNullBlock)].refs = 1;  // held for ever
  for (int32_t b = 1; b < num_blocks; ++b) PushBack(b);
}

EvictionClass BlockPool::NextClass() const {
  if (free_count(EvictionClass::kUnhashed) > 0) return EvictionClass::kUnhashed;
  const int32_t proven = free_count(EvictionClass::kProven);
  const int32_t probationary = free_count(EvictionClass::kProbationary);
  if (probationary == 0) return EvictionClass::kProven;
  return proven > kProvenShare * (proven + probationary) ? EvictionClass::kProven
                                                         : EvictionClass::kProbationary;
}

BlockId BlockPool::Next() const {
  OCTAVO_CHECK(free_count() > 0, "taking from an empty pool");
  return BlockId{records_[sentinel(NextClass())].next};
}

BlockId BlockPool::Take() {
  const BlockId b = Next();
  Unlink(Index(b));
  records_[Index(b)].refs = 1;
  return b;
}

void BlockPool::Ref(BlockId b) {
  Record& r = records_[Index(b)];
  if (r.free) Unlink(Index(b));
  ++r.refs;
}

void BlockPool::Unref(BlockId b) {
  Record& r = records_[Index(b)];
  OCTAVO_CHECK(r.refs > 0, "releasing a block nobody holds");
  if (--r.refs == 0) PushBack(Index(b));
}

void BlockPool::UnrefReversed(std::span<const int32_t> blocks) {
  constexpr size_t kAhead = 8;
  for (size_t i = blocks.size(); i-- > 0;) {
    if (i >= kAhead) __builtin_prefetch(&records_[blocks[i - kAhead]], 1);
    Unref(BlockId{blocks[i]});
  }
}

void BlockPool::SetClass(BlockId b, EvictionClass c) {
  Record& r = records_[Index(b)];
  if (r.cls == c) return;
  const bool was_free = r.free;
  if (was_free) Unlink(Index(b));
  r.cls = c;
  if (was_free) PushBack(Index(b));
}

std::vector<BlockId> BlockPool::FreeList(EvictionClass c) const {
  std::vector<BlockId> list;
  const int32_t s = sentinel(c);
  for (int32_t b = records_[s].next; b != s; b = records_[b].next) list.push_back(BlockId{b});
  return list;
}

void BlockPool::PushBack(int32_t block) {
  Record& r = records_[block];
  const int32_t s = sentinel(r.cls);
  r.prev = records_[s].prev;
  r.next = s;
  records_[r.prev].next = block;
  records_[s].prev = block;
  r.free = true;
  ++counts_[static_cast<int>(r.cls)];
}

void BlockPool::Unlink(int32_t block) {
  Record& r = records_[block];
  records_[r.prev].next = r.next;
  records_[r.next].prev = r.prev;
  r.free = false;
  --counts_[static_cast<int>(r.cls)];
}

}  // namespace octavo::kv
