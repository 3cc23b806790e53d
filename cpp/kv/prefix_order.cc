#include "kv/prefix_order.h"

#include <numeric>

#include "base/out_of_memory.h"

namespace octavo::kv {
namespace {

template <typename T>
std::vector<T> Take(int32_t count, const char* remedy) {
  return TakeVector<T>(static_cast<size_t>(count), "the order of rows that share a prefix", remedy);
}

}  // namespace

PrefixOrder::PrefixOrder(int32_t num_blocks, int32_t num_rows)
    : seen_(Take<Seen>(num_blocks, "lower num_blocks, or free some memory")) {
  const char* const remedy = "lower max_num_seqs, or free some memory";
  slots_ = Take<int32_t>(num_rows, remedy);
  order_ = Take<int32_t>(num_rows, remedy);
  part_of_ = Take<int32_t>(num_rows, remedy);
  parts_ = Take<Part>(num_rows, remedy);
  sorted_ = Take<int32_t>(num_rows, remedy);
  groups_ = Take<int32_t>(num_rows, remedy);
}

int32_t PrefixOrder::AddPart(const SharedBlocks::Prefix& prefix) {
  const int32_t part = num_parts_++;
  seen_[prefix.last].part = part;
  parts_[part] = {prefix.last, GroupOf(prefix.first), prefix.depth};
  return part;
}

// Behind all groups where there is no block.
int32_t PrefixOrder::GroupOf(int32_t first) {
  if (first == 0) return static_cast<int32_t>(count_);
  int32_t& group = seen_[first].group;
  if (group >= num_groups_ || groups_[group] != first) {
    group = num_groups_++;
    groups_[group] = first;
  }
  return group;
}

void PrefixOrder::Sort() {
  const auto parts = std::span(sorted_).first(static_cast<size_t>(num_parts_));
  std::iota(parts.begin(), parts.end(), 0);
  std::ranges::sort(parts, [this](int32_t left, int32_t right) {
    const Part &a = parts_[left], &b = parts_[right];
    if (a.group != b.group) return a.group < b.group;
    return a.depth != b.depth ? a.depth > b.depth : left < right;
  });
  int32_t next = 0;
  for (const int32_t part : parts) {
    parts_[part].next = next;
    next += parts_[part].rows;
  }
  for (size_t i = 0; i < count_; ++i) {
    order_[parts_[part_of_[i]].next++] = static_cast<int32_t>(i);
  }
}

}  // namespace octavo::kv
