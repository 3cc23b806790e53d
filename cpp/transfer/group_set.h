// GroupSet: the cache groups of an engine as a connector needs them: which content a block of a
// request has, and up to where a prefix is complete in every group.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "kv/cache_group.h"
#include "octavo/config.h"
#include "octavo/kv_connector.h"

namespace octavo::transfer {

class GroupSet {
 public:
  explicit GroupSet(const EngineConfig& config);

  int size() const { return static_cast<int>(specs_.size()); }
  int32_t unit() const { return unit_; }        // tokens between two hashes of a request
  int32_t align() const { return align_; }      // tokens that every prefix is a multiple of
  int32_t largest() const { return largest_; }  // tokens of the largest block
  const GroupSpec& spec(int group) const { return specs_[group]; }

  // REQUIRES: the request's hashes reach to the end of the block.
  kv::PrefixKey KeyOf(const KvRequest& request, int group, int32_t index) const;

  // How many of a group's blocks the request's hashes name; none of a cross group, whose blocks are
  // neither saved nor loaded.
  int32_t Covered(const KvRequest& request, int group) const {
    return groups_[group]->Covered({request.tokens, request.hashes, request.root});
  }

  // The longest prefix of the request, beyond `local_hit`, of which every group has the blocks that
  // the token after it reads. `has(group, index)` tells; what lies within the local hit is there.
  template <typename Has>
  int32_t LongestPrefix(const KvRequest& request, int32_t local_hit, const Has& has) const {
    const int64_t known = int64_t{unit_} * static_cast<int64_t>(request.hashes.size());
    int32_t end = static_cast<int32_t>(known / align_ * align_);
    // A missing block that the candidate needs is needed by every candidate that ends after it. Of
    // groups that keep everything the first missing block says it all.
    for (int g = 0; g < size(); ++g) {
      if (groups_[g]->FirstLive(end) > 0 || groups_[g]->cross()) continue;
      int32_t i = local_hit / specs_[g].block_size;
      while (i < end / specs_[g].block_size && has(g, i)) ++i;
      end = std::min(end, i * specs_[g].block_size / align_ * align_);
    }
    for (bool shortened = true; shortened && end > local_hit;) {
      shortened = false;
      for (int g = 0; g < size(); ++g) {
        const int32_t missing = LastMissing(g, end, local_hit, has);
        if (missing < 0) continue;
        end = missing * specs_[g].block_size / align_ * align_;
        shortened = true;
      }
    }
    return std::max(end, local_hit);
  }

 private:
  template <typename Has>
  int32_t LastMissing(int g, int32_t end, int32_t local_hit, const Has& has) const {
    const kv::CacheGroup& group = *groups_[g];
    if (group.cross()) return -1;  // an item's blocks are neither saved nor loaded
    const int32_t size = specs_[g].block_size;
    const int32_t first = local_hit / size;
    for (int32_t i = end / size; i-- > std::max(first, group.FirstLive(end));) {
      if (!has(g, i)) return i;
    }
    for (int32_t i = std::min(group.Head(), end / size); i-- > first;) {
      if (!has(g, i)) return i;
    }
    return -1;
  }

  std::vector<GroupSpec> specs_;
  std::vector<std::unique_ptr<kv::CacheGroup>> groups_;
  int32_t unit_ = 0;
  int32_t align_ = 1;
  int32_t largest_ = 1;
};

}  // namespace octavo::transfer
