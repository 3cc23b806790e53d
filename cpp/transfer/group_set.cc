#include "transfer/group_set.h"

#include <numeric>

namespace octavo::transfer {

GroupSet::GroupSet(const EngineConfig& config) : specs_(config.groups) {
  if (specs_.empty()) specs_.push_back({.block_size = config.block_size});
  for (const GroupSpec& spec : specs_) {
    if (spec.kind == GroupKind::kCross) continue;
    unit_ = std::gcd(unit_, spec.block_size);
    largest_ = std::max(largest_, spec.block_size);
    align_ = std::lcm(align_, spec.block_size);
  }
  for (int g = 0; g < size(); ++g) groups_.push_back(kv::MakeGroup(specs_[g], g, unit_));
}

kv::PrefixKey GroupSet::KeyOf(const KvRequest& request, int group, int32_t index) const {
  return groups_[group]->KeyOf({request.tokens, request.hashes, request.root}, index);
}

}  // namespace octavo::transfer
