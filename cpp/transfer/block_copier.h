// BlockCopier: moves whole blocks between the KV pool and host memory. A block of all layers of its
// group is one contiguous run, so each is one copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace octavo::transfer {

// Copies run in the order they are asked for: after every step that was launched before, and before
// any that is launched later.
class BlockCopier {
 public:
  virtual ~BlockCopier() = default;
  virtual void Out(int group, int32_t block, std::byte* host) = 0;
  virtual void In(int group, int32_t block, const std::byte* host) = 0;
  // Whether everything asked for so far has been copied.
  virtual bool Idle() = 0;
  // Returns when it has.
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
  bool Idle() override { return true; }
  void Drain() override {}

 private:
  std::byte* At(int group, int32_t block) const { return pool_ + block * block_bytes_[group]; }

  std::byte* pool_;
  std::vector<int64_t> block_bytes_;
};

}  // namespace octavo::transfer
