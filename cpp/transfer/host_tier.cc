#include "transfer/host_tier.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/out_of_memory.h"
#include "base/strcat.h"

namespace octavo::transfer {
namespace {

std::vector<int32_t> SplitsOf(const GroupSet& groups) {
  std::vector<int32_t> splits;
  for (int g = 0; g < groups.size(); ++g) splits.push_back(groups.spec(g).split);
  return splits;
}

// Room for one more; false without memory for it.
template <typename T>
bool TryGrow(std::vector<T>& vector) {
  return vector.size() < vector.capacity() || TryReserve(vector, 2 * vector.size() + 16);
}

// The null parent takes no memory.
size_t BytesOf(int32_t parents, int64_t parent_bytes) {
  return static_cast<size_t>(parents - 1) * static_cast<size_t>(parent_bytes);
}

}  // namespace

Result<std::unique_ptr<HostTier>> HostTier::Create(const EngineConfig& config, int64_t budget_bytes,
                                                   int64_t parent_bytes,
                                                   std::unique_ptr<BlockCopier> copier,
                                                   HostMemory& memory) {
  OCTAVO_CHECK(parent_bytes > 0 && copier, "a tier needs blocks and somebody who copies them");
  for (const GroupSpec& spec : config.groups) {
    if (parent_bytes % spec.split == 0) continue;
    return Status::InvalidArgument(StrCat("parent_bytes=", parent_bytes, " cannot be cut into ",
                                          spec.split, " blocks: give a multiple of every split"));
  }
  int64_t widest = 1;
  for (const GroupSpec& spec : config.groups) widest = std::max<int64_t>(widest, spec.split);
  const int64_t most = std::numeric_limits<int32_t>::max() / (widest * kMaxSplitGrid);
  const int64_t parents = std::min(budget_bytes / parent_bytes, most);
  if (parents < 1) {
    return Status::InvalidArgument(StrCat("a host tier of ", budget_bytes,
                                          " bytes holds no block: one takes ", parent_bytes,
                                          " bytes, give at least that"));
  }
  try {
    return std::unique_ptr<HostTier>(new HostTier(config, static_cast<int32_t>(parents) + 1,
                                                  parent_bytes, std::move(copier), memory));
  } catch (const std::bad_alloc&) {
    return OutOfMemoryStatus(
        OutOfMemory("a host tier", static_cast<size_t>(budget_bytes), "give it less").what());
  }
}

HostTier::HostTier(const EngineConfig& config, int32_t parents, int64_t parent_bytes,
                   std::unique_ptr<BlockCopier> copier, HostMemory& memory)
    : groups_(config),
      copier_(std::move(copier)),
      parent_bytes_(parent_bytes),
      pool_(parents, SplitsOf(groups_)),
      map_(pool_.num_places(), groups_.largest(), memory),
      place_(copier_->Place(BytesOf(parents, parent_bytes))) {
  if (!place_) {
    memory_ = TakeArray<std::byte>(memory, BytesOf(parents, parent_bytes), "a host tier", "");
    place_ = memory_.data();
  }
  stats_.capacity_bytes = static_cast<int64_t>(BytesOf(parents, parent_bytes));
}

std::byte* HostTier::At(BlockId block, int group) const {
  const int64_t bytes = parent_bytes_ / pool_.split(group);
  return place_ + (pool_.TableId(block, group) * bytes - parent_bytes_);
}

KvMatch HostTier::Match(const KvRequest& request, int32_t local_hit, const KvResidency& local) {
  const auto find = [&](int g, int32_t i) { return map_.Find(groups_.KeyOf(request, g, i)); };
  const int32_t end = groups_.LongestPrefix(request, local_hit, [&](int g, int32_t i) {
    return find(g, i) != kNoBlock || local.Has(g, i);
  });
  // Whoever waits for these blocks finds them recent: making room for their load must not take
  // them.
  for (int g = 0; g < groups_.size(); ++g) {
    if (groups_.spec(g).kind == GroupKind::kCross) continue;
    const int32_t size = groups_.spec(g).block_size;
    for (int32_t i = end / size; i-- > local_hit / size;) {
      const BlockId b = find(g, i);
      if (b == kNoBlock || pool_.refs(b) > 0) continue;
      pool_.Ref(b);
      pool_.Unref(b);
    }
  }
  return {.tokens = end - local_hit};
}

KvStart HostTier::StartLoad(const KvTransfer& load) {
  sources_.clear();
  // A load that there is no memory to keep the books of is a miss.
  if (!TryReserve(sources_, load.blocks.size())) return KvStart::kRefused;
  for (const KvBlock& b : load.blocks) {
    const BlockId from = map_.Find(groups_.KeyOf(load.request, b.group, b.index));
    if (from == kNoBlock) {  // gone since it was matched
      Unpin(sources_);
      return KvStart::kRefused;
    }
    pool_.Ref(from);
    pool_.Prove(from);
    sources_.push_back(from);
  }
  Load begun;
  begun.id = load.id;
  if (!TryReserve(begun.sources, sources_.size()) || !TryReserve(loads_, loads_.size() + 1)) {
    Unpin(sources_);
    return KvStart::kRefused;
  }
  for (size_t i = 0; i < load.blocks.size(); ++i) {
    const KvBlock& b = load.blocks[i];
    copier_->In(b.group, b.block, At(sources_[i], b.group));
  }
  asked_ = true;
  BeginCopies();
  begun.batch = batch_;
  begun.sources = sources_;
  loads_.push_back(std::move(begun));
  LookAtCopies();
  if (!loads_.back().ended) return KvStart::kPending;
  const bool ok = loads_.back().ok;
  Unpin(sources_);
  loads_.pop_back();
  return ok ? KvStart::kDone : KvStart::kRefused;
}

void HostTier::Unpin(std::span<const BlockId> sources) {
  // Last to first, so that the start of a prefix outlives its end.
  for (size_t i = sources.size(); i-- > 0;) pool_.Unref(sources[i]);
}

void HostTier::OnEvict(const KvContent& content) {
  // A block that ends early is found by what it begins with, which nobody asks a tier for.
  if (static_cast<int32_t>(content.tokens.size()) < groups_.spec(content.group).block_size) return;
  const kv::PrefixKey key{content.hash, content.parent, content.group, content.tokens};
  if (const BlockId b = map_.Find(key); b != kNoBlock) {
    pool_.Ref(b);
    pool_.Unref(b);
    return;
  }
  kv::BlockNeed one;
  one.of[content.group] = 1;
  if (!pool_.Fits(one) || !TryGrow(stores_)) {
    ++stats_.dropped_blocks;
    return;
  }
  const BlockId b = pool_.Take(content.group, {}, *this);
  const auto result = map_.Insert(b, key);
  if (result == kv::PrefixMap::InsertResult::kFirst ||
      result == kv::PrefixMap::InsertResult::kCopy) {
    pool_.SetClass(b, kv::EvictionClass::kProbationary);
    copier_->Out(content.group, content.block, At(b, content.group));
    stores_.push_back({b, batch_ + 1});
    asked_ = true;
    ++stats_.stored_blocks;
  }
  pool_.Unref(b);
}

void HostTier::OnEvict(BlockId block) {
  map_.Remove(block);
  ++stats_.evicted_blocks;
}

void HostTier::BeginCopies() {
  if (!asked_) return;
  asked_ = false;
  batch_ = copier_->Begin();
}

// Forgets what a failed copy should have stored, and settles the loads that have ended.
void HostTier::LookAtCopies() {
  if (stores_.empty() && loads_.empty()) return;
  const CopyProgress progress = copier_->Poll();
  size_t ended = 0;
  for (; ended < stores_.size() && stores_[ended].batch <= progress.ended; ++ended) {
    const Store& store = stores_[ended];
    if (store.batch > progress.failed) continue;
    ++stats_.failed_blocks;
    // It may have been given up for another since, whose copy is later in the same list or good.
    if (map_.Contains(store.block)) Forget(store.block);
  }
  stores_.erase(stores_.begin(), stores_.begin() + static_cast<std::ptrdiff_t>(ended));
  for (Load& load : loads_) {
    if (load.ended || load.batch > progress.ended) continue;
    load.ended = true;
    load.ok = load.batch > progress.failed;
    (load.ok ? stats_.loaded_blocks : stats_.failed_blocks) += load.sources.size();
  }
}

Status HostTier::TakeReports(std::vector<KvReport>* reports) {
  LookAtCopies();
  if (loads_.empty()) return Status::Ok();
  if (!TryReserve(*reports, reports->size() + loads_.size())) return Status::Ok();  // next time
  std::erase_if(loads_, [&](const Load& load) {
    if (!load.ended) return false;
    reports->push_back({load.id, load.ok});
    Unpin(load.sources);
    return true;
  });
  return Status::Ok();
}

bool HostTier::WaitForLoads() {
  if (loads_.empty()) return false;
  copier_->Drain();
  return true;
}

void HostTier::Stop() { copier_->Drain(); }

void HostTier::Reset() {
  for (int32_t b = 1; b < pool_.num_places(); ++b) {
    if (map_.Contains(BlockId{b})) Forget(BlockId{b});
  }
}

void HostTier::OnForget(const KvRequest& request, int32_t first) {
  for (int g = 0; g < groups_.size(); ++g) {
    for (int32_t i = first / groups_.spec(g).block_size; i < groups_.Covered(request, g); ++i) {
      const BlockId b = map_.Find(groups_.KeyOf(request, g, i));
      if (b != kNoBlock) Forget(b);
    }
  }
}

void HostTier::Forget(BlockId block) {
  map_.Remove(block);
  pool_.SetClass(block, kv::EvictionClass::kUnhashed);
}

HostTierStats HostTier::stats() const {
  HostTierStats s = stats_;
  s.blocks = map_.size();
  return s;
}

}  // namespace octavo::transfer
