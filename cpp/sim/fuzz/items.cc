// Images in a life: whether each plan names them rightly, and what goes wrong with them.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "sim/fuzz/generate.h"
#include "sim/fuzz/life.h"

namespace octavo::sim {
namespace {

// Whoever failed for a NaN that others had left behind takes it along, so the next may fail again
// only where there was more of it.
constexpr int kMostAttempts = 10;

}  // namespace

void Life::CheckItems(const StepPlan& plan) {
  if (!plan.encoder_evicted.empty()) Count(OpKind::kItemEvicted);
  int32_t work = 0;
  for (const EncoderInput& input : plan.encoder_inputs) {
    const Guest* guest = Find(input.request);
    OCTAVO_CHECK(guest && size_t(input.item) < guest->spec.items.size(), "nobody brought an item");
    work += guest->spec.items[size_t(input.item)].embeddings;
  }
  OCTAVO_CHECK(work <= config_.encoder_budget || config_.encoder_budget == 0,
               "a step encodes more than its budget");
  size_t next = 0;
  for (int32_t row = 0; row < plan.num_rows; ++row) {
    const int32_t first = plan.query_start[row];
    const int32_t start = plan.position[first];
    const int32_t end = start + plan.query_start[row + 1] - first;
    const std::vector<EncoderItem>& items = Find(plan.request[row])->spec.items;
    for (size_t i = 0; i < items.size(); ++i) {
      const int32_t from = std::max(items[i].start, start);
      const int32_t to = std::min(items[i].start + items[i].length, end);
      if (from >= to) continue;
      OCTAVO_CHECK(next < plan.encoder_spans.size(), "an item has no span in its row");
      const EncoderSpan& span = plan.encoder_spans[next++];
      OCTAVO_CHECK(span.row == row && span.item == int32_t(i) &&
                       span.token == first + from - start && span.count == to - from &&
                       span.offset == from - items[i].start,
                   "a span lies elsewhere than its item");
      OCTAVO_CHECK(!items[i].bidirectional || to == items[i].start + items[i].length,
                   "a chunk ends inside a span whose tokens see each other");
      if (span.count < items[i].length) Count(OpKind::kItemSplit);
    }
  }
  OCTAVO_CHECK(next == plan.encoder_spans.size(), "a span belongs to no item");
  if (plan.encoder_spans.size() > plan.encoder_inputs.size()) Count(OpKind::kItemShared);
}

void Life::NameInputs(OpenStep& step) {
  for (const EncoderInput& input : step.plan.encoder_inputs) {
    const EncoderItem& item = Find(input.request)->spec.items[size_t(input.item)];
    step.inputs.push_back({item.hash[0], item.embeddings, item.bidirectional});
    if (!break_item_ || retrying_) continue;
    break_item_ = false;
    step.inputs.back().nan = true;
    broken_.push_back(item.hash[0]);
    Count(OpKind::kNanItem);
  }
}

// Whether a NaN may be seen by a request: in one of its images, or at a token of its own.
bool Life::HasBroken(const Guest& guest) const {
  const auto broken_item = [&](const EncoderItem& item) {
    return std::find(broken_.begin(), broken_.end(), item.hash[0]) != broken_.end();
  };
  const auto tokens = guest.oracle.tokens();
  const auto broken_prefix = [&](const auto& broken) {
    const auto& [salt, prefix] = broken;
    return salt == guest.spec.salt && prefix.size() <= tokens.size() &&
           std::equal(prefix.begin(), prefix.end(), tokens.begin());
  };
  return std::any_of(guest.spec.items.begin(), guest.spec.items.end(), broken_item) ||
         std::any_of(broken_prefixes_.begin(), broken_prefixes_.end(), broken_prefix);
}

void Life::BreakToken(const StepPlan& plan) {
  const int32_t t = int32_t(break_choice_ % uint64_t(plan.num_tokens));
  const int32_t row =
      int32_t(std::upper_bound(plan.query_start, plan.query_start + plan.num_rows, t) -
              plan.query_start) -
      1;
  const Guest* guest = Find(plan.request[row]);
  const size_t end = size_t(plan.position[t]) + 1;
  // A guess that proves wrong is written over.
  if (!guest || end > guest->oracle.tokens().size()) return;
  const auto prefix = guest->oracle.tokens().first(end);
  broken_prefixes_.push_back({guest->spec.salt, {prefix.begin(), prefix.end()}});
  model_.BreakToken(t);
  break_token_ = false;
  Count(OpKind::kNanToken);
}

// The encoder fails at one of the items of the oldest step that has not run.
void Life::FailEncode() {
  while (open_.front().executed) Finish();
  const OpenStep& step = open_.front();
  model_.Encode(step.plan, std::span(step.inputs).first(spoil_choice_ % step.inputs.size()));
  Fail(1);
  fail_encode_ = false;
  Count(OpKind::kFailEncode);
}

bool Life::SubmitBadItem(uint64_t argument) {
  RequestSpec s = MakeRequest(config_, argument);
  const int32_t length = int32_t(s.prompt.size());
  s.items = {MakeItem(config_, int32_t(argument % 9), 0)};
  if (MostCross(config_) > 0) s.items.push_back(MakeCrossItem(config_, argument));
  EncoderItem& item = s.items[0];
  item.length = 1;
  switch (argument / 9 % 6) {
    case 0:  // larger than any step can encode, or the cache keep
      item.embeddings = 1 + int32_t(argument % 1000);
      item.embeddings += MostCross(config_) > 0 ? config_.encoder_cache_size  // beside a short one
                                                : MostEmbeddings(config_);
      break;
    case 1:
      item.embeddings = -int32_t(argument % 3);
      break;
    case 2:
      item.start = length;
      break;
    case 3:
      item.length = argument % 2 ? 0 : length + 1;
      break;
    case 4:
      item.start = -1;
      break;
    default:  // one content, two sizes
      if (length < 2 || MostEmbeddings(config_) < 2) return false;
      item.embeddings = 1;
      s.items.insert(s.items.begin(), EncoderItem(item));
      s.items[1].start = 1;
      s.items[1].embeddings = 2;
  }
  MustChangeNothing([&] {
    const auto id = engine_.AddRequest(s.input());
    OCTAVO_CHECK(id.ok() || id.status().code() == StatusCode::kInvalidArgument,
                 "a bad item is no invalid argument");
    return id.ok();
  });
  return true;
}

bool Life::StrikeItem(OpKind kind, uint64_t argument) {
  const bool images = config_.encoder_cache_size > 0;
  const bool any = kind == OpKind::kFailEncode || kind == OpKind::kNanItem;
  if (!images && !(any && MostCross(config_) > 0)) return false;
  switch (kind) {
    case OpKind::kBadItem:
      return SubmitBadItem(argument);
    case OpKind::kItemHerd: {
      RequestSpec s = MakeRequest(config_, argument);
      if (s.items.empty()) return false;
      // One set of images behind texts that differ from the first token on.
      for (int32_t i = 0; i < 3 + int32_t(argument % 4); ++i) {
        s.salt = std::string(size_t(i), 's');
        Submit(s);
      }
      return true;
    }
    case OpKind::kFailEncode:  // this and the next are counted where they strike
      fail_encode_ = true;
      return false;
    case OpKind::kNanItem:
      break_item_ = true;
      return false;
    default:
      engine_.ResetEncoderCache();
      return true;
  }
}

// A NaN that was noticed is gone: who comes again with the same images gets the tokens that it gets
// alone.
void Life::RetryBroken() {
  retrying_ = true;
  spoil_ = OpKind::kCheck;
  fail_encode_ = break_token_ = false;
  for (const RequestSpec& spec : std::exchange(to_retry_, {})) {
    int attempts = 0;
    do {
      OCTAVO_CHECK(attempts++ < kMostAttempts, "a NaN stays in the cache");
      to_retry_.clear();
      Submit(spec);
      Work();
    } while (!to_retry_.empty());
  }
}

}  // namespace octavo::sim
