// Encoder-decoder engines in a life: their groups, the items of their requests, and which of them a
// step encodes.
#include <algorithm>

#include "base/check.h"
#include "sim/fuzz/generate.h"
#include "sim/fuzz/life.h"

namespace octavo::sim {
namespace {

constexpr uint64_t kCrossStream = 11;
constexpr uint64_t kCrossItemStream = 12;
constexpr int32_t kCrossContents = 7;  // different items, so that requests share some

}  // namespace

void DrawCross(uint64_t seed, EngineConfig* c) {
  Random random(Mix(seed, kCrossStream));
  if (!random.OneIn(4)) return;
  if (c->groups.empty()) c->groups.push_back({.block_size = c->block_size});
  constexpr int32_t kSplits[] = {1, 2, 3, 4};
  int32_t longest = 0;
  for (int32_t n = random.Between(1, 2); n > 0; --n) {
    GroupSpec g;
    g.kind = GroupKind::kCross;
    g.block_size = 1 << random.Below(4);
    g.encoder_len = random.Between(1, 24);
    g.split = kSplits[random.Below(4)];
    longest = std::max(longest, g.encoder_len);
    c->groups.insert(c->groups.begin() + random.Below(int32_t(c->groups.size()) + 1), g);
  }
  if (random.OneIn(2)) c->encoder_budget = random.Between(1, 2 * longest);
}

int32_t MostCross(const EngineConfig& config) {
  int32_t most = 0;
  for (const GroupSpec& g : config.groups) {
    if (g.kind != GroupKind::kCross) continue;
    most = most > 0 ? std::min(most, g.encoder_len) : g.encoder_len;
  }
  return config.encoder_budget > 0 ? std::min(most, config.encoder_budget) : most;
}

EncoderItem MakeCrossItem(const EngineConfig& config, uint64_t seed) {
  Random random(Mix(seed, kCrossItemStream));
  const int32_t most = MostCross(config);
  const int32_t content = random.Below(kCrossContents);
  EncoderItem item;
  item.hash[0] = uint64_t(content) + 100;
  item.hash[1] = 5;
  item.embeddings = 1 + content * 11 % most;
  item.cross = true;
  return item;
}

void Life::CheckCross(const StepPlan& plan) {
  int32_t work = 0;
  for (const EncoderInput& input : plan.encoder_inputs) {
    const Guest* guest = Find(input.request);
    OCTAVO_CHECK(guest && size_t(input.item) < guest->spec.items.size(), "nobody brought an item");
    const EncoderItem& item = guest->spec.items[size_t(input.item)];
    OCTAVO_CHECK(plan.request[input.row] == input.request, "an item is of another row");
    OCTAVO_CHECK((input.entry < 0) == item.cross, "a cross item has an entry, or another has none");
    OCTAVO_CHECK(!item.cross || guest->computed == plan.seq_len[input.row],
                 "an item is encoded for a row of an earlier life");
    work += item.embeddings;
  }
  OCTAVO_CHECK(config_.encoder_budget == 0 || work <= config_.encoder_budget,
               "a step encodes more than its budget");
  for (int32_t row = 0; row < plan.num_rows; ++row) {
    int32_t embeddings = 0;
    for (const EncoderItem& item : Find(plan.request[row])->spec.items) {
      if (item.cross) embeddings = item.embeddings;
    }
    OCTAVO_CHECK(plan.cross_len[row] == embeddings, "a row sees another item than its own");
  }
}

}  // namespace octavo::sim
