// BlockCopier: moves whole blocks between the KV pool and host memory. A block of all layers of its
// group is one contiguous run, so each is one copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace octavo::transfer {

// How far copies have come. Batches count from 1, in the order in which they were begun.
struct CopyProgress {
  uint64_t ended = 0;   // the batches up to this one touch no memory any more
  uint64_t failed = 0;  // those up to this one may not have copied what they should; see Poll
};

// What is asked for is copied in batches. A block that leaves holds what a finished step or a
// finished batch wrote, so its copy may begin at once; it ends before a step that is launched after
// its batch was begun writes the block, and before a block of the same batch or a later one comes
// in. Nothing reads or writes a block that comes in until its batch has ended.
class BlockCopier {
 public:
  virtual ~BlockCopier() = default;
  // Memory of at least so many bytes that it can copy to and from; null: any memory will do.
  virtual std::byte* Place(size_t /*bytes*/) { return nullptr; }

  virtual void Out(int group, int32_t block, std::byte* host) = 0;
  virtual void In(int group, int32_t block, const std::byte* host) = 0;
  // Makes a batch of what was asked for since the last one, and begins it. Returns its number.
  virtual uint64_t Begin() = 0;
  // A batch that failed takes with it all that were under way: `failed` names the last of these,
  // and every batch up to it counts as failed that no earlier call has named as ended.
  virtual CopyProgress Poll() = 0;
  // Returns when every batch has ended.
  virtual void Drain() = 0;
};

// For a pool in this process's memory. It copies at once: the CPU's steps use every core, so that
// copying beside them would only slow them down.
class MemoryCopier final : public BlockCopier {
 public:
  // `block_bytes`: of each group. The pool outlives the copier.
  MemoryCopier(std::byte* pool, std::vector<int64_t> block_bytes)
      : pool_(pool), block_bytes_(std::move(block_bytes)) {}

  void Out(int group, int32_t block, std::byte* host) override {
    std::memcpy(host, At(group, block), static_cast<size_t>(block_bytes_[group]));
  }
  void In(int group, int32_t block, const std::byte* host) override {
    std::memcpy(At(group, block), host, static_cast<size_t>(block_bytes_[group]));
  }
  uint64_t Begin() override { return ++begun_; }
  CopyProgress Poll() override { return {begun_, 0}; }
  void Drain() override {}

 private:
  std::byte* At(int group, int32_t block) const { return pool_ + block * block_bytes_[group]; }

  std::byte* pool_;
  std::vector<int64_t> block_bytes_;
  uint64_t begun_ = 0;
};

}  // namespace octavo::transfer
