#include "kv/block_pool.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <numeric>

#include "base/check.h"
#include "base/out_of_memory.h"

namespace octavo::kv {
namespace {

// How many blocks ahead is fetched what freeing a block of a row writes.
constexpr size_t kUnrefDistance = 8;

uint64_t LowBits(int count) {
  return count == kMaxSplit ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

}  // namespace

BlockPool::BlockPool(int32_t num_parents, std::span<const int32_t> split)
    : num_parents_(num_parents), num_groups_(static_cast<int>(split.size())) {
  OCTAVO_CHECK(num_parents >= 2, "a pool needs the null parent and one to use");
  OCTAVO_CHECK(num_groups_ >= 1 && num_groups_ <= kMaxGroups, "too many groups");
  for (int32_t s : split) {
    OCTAVO_CHECK(s >= 1 && s <= kMaxSplit, "a split is out of range");
    widest_ = std::max(widest_, s);
  }
  whole_ = widest_ == 1;
  // Places of different splits may not overlap by accident: round the grid up to one that holds
  // all.
  if (!whole_) {
    int64_t grid = 1;
    for (int32_t s : split) grid = std::lcm(grid, int64_t{s});
    OCTAVO_CHECK(grid <= kMaxSplitGrid, "the splits have no small common grid");
    widest_ = static_cast<int32_t>(grid);
  }
  for (int g = 0; g < num_groups_; ++g) {
    split_[g] = split[g];
    stride_[g] = widest_ / split[g];
  }
  constexpr char kRemedy[] = "lower num_blocks, or free some memory";
  const size_t lists = size_t(num_groups_) * kEvictionClasses;
  units_ = TakeVector<Unit>(static_cast<size_t>(num_places()) + lists, "the block pool", kRemedy);
  for (int32_t s = num_places(); s < static_cast<int32_t>(units_.size()); ++s) {
    units_[s].links = {s, s};
  }
  units_[Index(kNullBlock)].refs = 1;  // held for ever
  if (!whole_) {
    parents_ = TakeVector<Parent>(static_cast<size_t>(num_parents) + kEvictionClasses + num_groups_,
                                  "the block pool", kRemedy);
    for (int32_t s = num_parents; s < static_cast<int32_t>(parents_.size()); ++s) {
      parents_[s].links = {s, s};
    }
  }
  // The latest is given away first.
  for (int32_t p = num_parents - 1; p > 0; --p) {
    if (whole_) {
      AddFree(units_, p);
    } else {
      parents_[p].empty = 1;
      OnIdle(p);
    }
  }
}

template <typename Record>
void BlockPool::LinkFirst(std::vector<Record>& records, int32_t sentinel, int32_t at) {
  const int32_t first = records[sentinel].links.next;
  records[at].links = {sentinel, first};
  records[first].links.prev = at;
  records[sentinel].links.next = at;
}

template <typename Record>
void BlockPool::LinkLast(std::vector<Record>& records, int32_t sentinel, int32_t at) {
  const int32_t last = records[sentinel].links.prev;
  records[at].links = {last, sentinel};
  records[last].links.next = at;
  records[sentinel].links.prev = at;
}

template <typename Record>
void BlockPool::Unlink(std::vector<Record>& records, int32_t at) {
  Links& l = records[at].links;
  OCTAVO_CHECK(l.prev >= 0, "unlinking what is on no list");
  records[l.prev].links.next = l.next;
  records[l.next].links.prev = l.prev;
  l = {};
}

int32_t BlockPool::ParentsFor(const BlockNeed& need) const {
  int32_t parents = 0;
  for (int g = 0; g < num_groups_; ++g) {
    const int32_t beyond = need.of[g] - own_free_[g];
    if (beyond > 0) parents += (beyond + split_[g] - 1) / split_[g];
  }
  return parents;
}

EvictionClass BlockPool::NextClass() const {
  const EvictionClass first = classes_.First();
  if (first != EvictionClass::kProbationary) return first;
  // Nothing lower is left, so all the others are worth more than the probationary ones.
  const int32_t kept = free_parents_ - free_parents(EvictionClass::kProbationary);
  if (kept <= kProvenShare * free_parents_) return first;
  ClassSet above = classes_;
  above.Remove(first);
  return above.First();
}

BlockId BlockPool::Take(int group, const BlockNeed& rest, EvictionSink& sink) {
  if (whole_) return TakeWhole(sink);
  if (parents_[PartialList(group)].links.next != PartialList(group)) return TakePartial(group);
  return PrefersOwn(group, rest) ? TakeCached(group, sink) : TakeParent(group, sink);
}

// Its own cached blocks come first when the rest needs every free parent; otherwise empty parents
// do, because they cost nobody a prefix, and so do parents that are worth less than what somebody
// asked to keep.
bool BlockPool::PrefersOwn(int group, const BlockNeed& rest) const {
  if (cached_classes_[group].empty()) return false;
  if (ParentsFor(rest) >= free_parents()) return true;
  const EvictionClass next = NextClass();
  const EvictionClass own = cached_classes_[group].First();
  return next != EvictionClass::kUnhashed && (own <= EvictionClass::kProven || own <= next);
}

BlockId BlockPool::TakePartial(int group) {
  const int32_t p = parents_[PartialList(group)].links.next;
  Parent& parent = parents_[p];
  const int offset = std::countr_zero(parent.empty);
  parent.empty &= parent.empty - 1;
  if (parent.empty == 0) Unlink(parents_, p);
  ++parent.used;
  --own_free_[group];
  const BlockId b = At(p, offset, group);
  units_[Index(b)].refs = 1;
  return b;
}

void BlockPool::LinkCached(int group, int32_t at) {
  const EvictionClass cls = units_[at].cls;
  LinkLast(units_, CachedList(group, cls), at);
  cached_classes_[group].Add(cls);
}

void BlockPool::UnlinkCached(int group, int32_t at) {
  const EvictionClass cls = units_[at].cls;
  Unlink(units_, at);
  const int32_t s = CachedList(group, cls);
  if (units_[s].links.next == s) cached_classes_[group].Remove(cls);
}

BlockId BlockPool::TakeCached(int group, EvictionSink& sink) {
  const int32_t at = units_[CachedList(group, cached_classes_[group].First())].links.next;
  UnlinkCached(group, at);
  ++parents_[ParentOf(BlockId{at})].used;
  --own_free_[group];
  sink.OnEvict(BlockId{at});
  Unit& unit = units_[at];
  unit.cls = EvictionClass::kUnhashed;
  unit.hit = false;
  unit.refs = 1;
  return BlockId{at};
}

BlockId BlockPool::TakeWhole(EvictionSink& sink) {
  OCTAVO_CHECK(free_parents() > 0, "taking from an empty pool");
  const int32_t at = units_[FreeList(NextClass())].links.next;
  RemoveFree(units_, at);
  Unit& unit = units_[at];
  if (unit.cls != EvictionClass::kUnhashed) {
    sink.OnEvict(BlockId{at});
    unit.cls = EvictionClass::kUnhashed;
    unit.hit = false;
  }
  unit.refs = 1;
  return BlockId{at};
}

BlockId BlockPool::TakeParent(int group, EvictionSink& sink) {
  OCTAVO_CHECK(free_parents() > 0, "taking from an empty pool");
  const int32_t p = parents_[FreeList(NextClass())].links.next;
  Parent& parent = parents_[p];
  RemoveFree(parents_, p);
  for (int i = 0; i < split_[parent.owner]; ++i) {
    const BlockId b = At(p, i, parent.owner);
    Unit& unit = units_[Index(b)];
    if (unit.cls == EvictionClass::kUnhashed) continue;
    sink.OnEvict(b);
    unit.cls = EvictionClass::kUnhashed;
    unit.hit = false;
  }
  parent.owner = static_cast<int8_t>(group);
  parent.used = 1;
  parent.empty = LowBits(split_[group]) & ~uint64_t{1};
  own_free_[group] += split_[group] - 1;
  if (parent.empty != 0) LinkLast(parents_, PartialList(group), p);
  const BlockId b = At(p, 0, group);
  units_[Index(b)].refs = 1;
  return b;
}

template <typename Record>
void BlockPool::RemoveFree(std::vector<Record>& records, int32_t p) {
  const EvictionClass cls = records[p].cls;
  --free_parents_;
  if (--counts_[static_cast<int>(cls)] == 0) classes_.Remove(cls);
  Unlink(records, p);
}

// A free parent is used again: its other free blocks become its owner's.
void BlockPool::OnUse(int32_t p) {
  Parent& parent = parents_[p];
  RemoveFree(parents_, p);
  own_free_[parent.owner] += split_[parent.owner];
  if (parent.empty != 0) LinkLast(parents_, PartialList(parent.owner), p);
  ShowCached(p, true);
}

// The last used block of a parent went: it stands free as a whole, in its most valuable class.
void BlockPool::OnIdle(int32_t p) {
  Parent& parent = parents_[p];
  const int group = parent.owner;
  parent.cls = units_[Index(At(p, 0, group))].cls;
  for (int i = 1; i < split_[group]; ++i) {
    parent.cls = std::max(parent.cls, units_[Index(At(p, i, group))].cls);
  }
  AddFree(parents_, p);
}

template <typename Record>
void BlockPool::AddFree(std::vector<Record>& records, int32_t p) {
  const EvictionClass cls = records[p].cls;
  if (cls == EvictionClass::kUnhashed) {
    LinkFirst(records, FreeList(cls), p);
  } else {
    LinkLast(records, FreeList(cls), p);
  }
  ++free_parents_;
  if (counts_[static_cast<int>(cls)]++ == 0) classes_.Add(cls);
}

// Puts a parent's free cached blocks onto their group's lists, or takes them off.
void BlockPool::ShowCached(int32_t p, bool show) {
  const int group = parents_[p].owner;
  if (split_[group] == 1) return;
  for (int i = 0; i < split_[group]; ++i) {
    const int32_t at = Index(At(p, i, group));
    const Unit& unit = units_[at];
    if (unit.refs > 0 || unit.cls == EvictionClass::kUnhashed) continue;
    if (show) {
      LinkCached(group, at);
    } else {
      UnlinkCached(group, at);
    }
  }
}

void BlockPool::Ref(BlockId b) {
  Unit& unit = units_[Index(b)];
  if (unit.refs++ > 0) return;
  if (whole_) {  // the common case, and nothing of what follows: a parent is the block
    RemoveFree(units_, Index(b));
    return;
  }
  const int32_t p = ParentOf(b);
  Parent& parent = parents_[p];
  const int group = parent.owner;
  const bool was_idle = parent.used == 0;
  if (was_idle) OnUse(p);  // shows the parent's other cached blocks, not this one
  ++parent.used;
  if (unit.cls == EvictionClass::kUnhashed) {
    parent.empty &= ~(uint64_t{1} << OffsetOf(b, group));
    if (parent.empty == 0) Unlink(parents_, p);
  } else if (split_[group] > 1 && !was_idle) {
    UnlinkCached(group, Index(b));
  }
  --own_free_[group];
}

void BlockPool::Unref(BlockId b) {
  Unit& unit = units_[Index(b)];
  OCTAVO_CHECK(unit.refs > 0, "releasing a block nobody holds");
  if (--unit.refs > 0) return;
  if (whole_) {
    AddFree(units_, Index(b));
    return;
  }
  const int32_t p = ParentOf(b);
  Parent& parent = parents_[p];
  const int group = parent.owner;
  const bool was_partial = parent.empty != 0;
  --parent.used;
  if (unit.cls == EvictionClass::kUnhashed) parent.empty |= uint64_t{1} << OffsetOf(b, group);
  if (parent.used == 0) {
    own_free_[group] -= split_[group] - 1;
    if (was_partial) Unlink(parents_, p);
    // This block is on no list yet, so it must not be taken off one.
    ++unit.refs;
    ShowCached(p, false);
    --unit.refs;
    OnIdle(p);
    return;
  }
  ++own_free_[group];
  if (unit.cls != EvictionClass::kUnhashed) {
    LinkCached(group, Index(b));
  } else if (!was_partial) {
    LinkLast(parents_, PartialList(group), p);
  }
}

void BlockPool::UnrefReversed(std::span<const int32_t> row, int group) {
  while (whole_ && !row.empty()) {
    const EvictionClass cls = units_[row.back()].cls;
    const bool empty = cls == EvictionClass::kUnhashed;
    row = row.first(empty ? UnrefRun<true>(row, cls) : UnrefRun<false>(row, cls));
  }
  for (size_t i = row.size(); i-- > 0;) {
    if (i >= kUnrefDistance) Prefetch(FromTable(row[i - kUnrefDistance], group));
    if (row[i] != Index(kNullBlock)) Unref(FromTable(row[i], group));
  }
}

// AddFree of the row's last blocks, as far as they are of one class: their list stays open, so that
// one block does not wait for the stores of the one before. How many blocks are left.
template <bool kEmpty>
size_t BlockPool::UnrefRun(std::span<const int32_t> row, EvictionClass cls) {
  const int32_t list = FreeList(cls);
  int32_t edge = kEmpty ? units_[list].links.next : units_[list].links.prev;
  int32_t freed = 0;
  size_t i = row.size();
  for (; i > 0; --i) {
    if (i > kUnrefDistance) __builtin_prefetch(&units_[row[i - 1 - kUnrefDistance]], 1);
    const int32_t b = row[i - 1];
    if (b == Index(kNullBlock)) continue;
    Unit& unit = units_[b];
    if (unit.cls != cls) break;
    OCTAVO_CHECK(unit.refs > 0, "releasing a block nobody holds");
    if (--unit.refs > 0) continue;
    if constexpr (kEmpty) {
      unit.links.next = edge;
      units_[edge].links.prev = b;
    } else {
      unit.links.prev = edge;
      units_[edge].links.next = b;
    }
    edge = b;
    ++freed;
  }
  if constexpr (kEmpty) {
    units_[edge].links.prev = list;
    units_[list].links.next = edge;
  } else {
    units_[edge].links.next = list;
    units_[list].links.prev = edge;
  }
  free_parents_ += freed;
  counts_[static_cast<int>(cls)] += freed;
  if (freed > 0) classes_.Add(cls);
  return i;
}

void BlockPool::SetClass(BlockId b, EvictionClass c) {
  Unit& unit = units_[Index(b)];
  if (c == EvictionClass::kUnhashed) unit.hit = false;
  if (unit.cls == c) return;
  if (unit.refs > 0) {
    unit.cls = c;
    return;
  }
  // As if somebody took it, changed it and let it go.
  Ref(b);
  unit.cls = c;
  Unref(b);
}

std::vector<int32_t> BlockPool::FreeParents(EvictionClass c) const {
  std::vector<int32_t> list;
  const int32_t s = FreeList(c);
  const auto next = [this](int32_t at) {
    return whole_ ? units_[at].links.next : parents_[at].links.next;
  };
  for (int32_t p = next(s); p != s; p = next(p)) list.push_back(p);
  return list;
}

// How many parents nobody uses.
int32_t BlockPool::CheckParents() const {
  std::array<int32_t, kMaxGroups> own_free{};
  int32_t idle = 0;
  for (int32_t p = 1; p < num_parents_; ++p) {
    const Parent& parent = parents_[p];
    const int group = parent.owner;
    int used = 0;
    for (int i = 0; i < split_[group]; ++i) {
      const Unit& unit = units_[Index(At(p, i, group))];
      const bool marked = (parent.empty >> i & 1) != 0;
      const bool hashed = unit.cls != EvictionClass::kUnhashed;
      used += unit.refs > 0;
      // A parent that was never owned has one bit, whatever its first owner's split.
      if (parent.used > 0) {
        OCTAVO_CHECK(marked == (unit.refs == 0 && !hashed), "an occupancy word is wrong");
        OCTAVO_CHECK((unit.links.prev >= 0) == (unit.refs == 0 && hashed && split_[group] > 1),
                     "a cached block and its list disagree");
      }
    }
    OCTAVO_CHECK(used == parent.used, "a parent's count is wrong");
    if (parent.used == 0) ++idle;
    if (parent.used > 0) own_free[group] += split_[group] - parent.used;
  }
  OCTAVO_CHECK(own_free == own_free_, "free blocks of partly used parents were lost");
  for (int g = 0; g < num_groups_; ++g) {
    ClassSet found;
    for (int c = 0; c < kEvictionClasses; ++c) {
      const int32_t s = CachedList(g, EvictionClass(c));
      if (units_[s].links.next != s) found.Add(EvictionClass(c));
    }
    OCTAVO_CHECK(found == cached_classes_[g], "a group's classes are marked wrongly");
  }
  return idle;
}

// The same where parents are blocks.
int32_t BlockPool::CheckUnits() const {
  int32_t idle = 0;
  for (int32_t b = 1; b < num_parents_; ++b) {
    const Unit& unit = units_[b];
    OCTAVO_CHECK((unit.refs == 0) == (unit.links.prev >= 0), "a free block stands on no list");
    idle += unit.refs == 0;
  }
  return idle;
}

void BlockPool::CheckInvariants() const {
  const int32_t idle = whole_ ? CheckUnits() : CheckParents();
  OCTAVO_CHECK(idle == free_parents(), "free parents were lost");
  int32_t listed = 0;
  for (int c = 0; c < kEvictionClasses; ++c) {
    const auto list = FreeParents(static_cast<EvictionClass>(c));
    OCTAVO_CHECK(int32_t(list.size()) == counts_[c], "a free list and its count disagree");
    for (int32_t p : list) {
      const bool used = whole_ ? units_[p].refs > 0 : parents_[p].used > 0;
      OCTAVO_CHECK(!used, "a used parent is on a free list");
      OCTAVO_CHECK((whole_ ? units_[p].cls : parents_[p].cls) == EvictionClass(c),
                   "a free parent stands on the list of another class");
    }
    listed += int32_t(list.size());
    ClassSet rest = classes_;
    rest.Remove(EvictionClass(c));
    const bool marked = !(rest == classes_);
    OCTAVO_CHECK(marked == !list.empty(), "a class is marked wrongly");
  }
  OCTAVO_CHECK(listed == free_parents_, "free parents stand on no list");
}

}  // namespace octavo::kv
