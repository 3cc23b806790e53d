// Encoder-decoder requests: one item each, whose keys and values every token sees through the cross
// groups. It is encoded in the step that admits the request, unless all of its blocks are cached.
#include <algorithm>

#include "base/strcat.h"
#include "sched/scheduler.h"

namespace octavo::sched {

Status Scheduler::CheckCrossItems(std::span<const EncoderItem> items) const {
  const bool wanted = kv_.has_cross();
  const auto is_cross = [](const EncoderItem& item) { return item.cross; };
  const auto count = std::count_if(items.begin(), items.end(), is_cross);
  if (count == 0 && !wanted) return Status::Ok();
  if (!wanted) {
    return Status::InvalidArgument(
        "encoder_items has a cross item, but this engine has no cross group: give it a span of "
        "placeholder tokens, or add a group of kind cross");
  }
  if (count != 1) {
    return Status::InvalidArgument(
        StrCat("encoder_items has ", count,
               " cross items: with a cross group every request brings exactly one"));
  }
  const size_t i =
      static_cast<size_t>(std::find_if(items.begin(), items.end(), is_cross) - items.begin());
  const EncoderItem& item = items[i];
  const auto refuse = [i](auto... text) {
    return Status::InvalidArgument(StrCat("encoder_items[", i, "] ", text...));
  };
  if (item.start != 0 || item.length != 0 || item.bidirectional) {
    return refuse("is a cross item with start=", item.start, ", length=", item.length,
                  " and bidirectional=", item.bidirectional ? "true" : "false",
                  ": it has no place among the tokens, give 0, 0 and false");
  }
  if (item.embeddings < 1 || item.embeddings > longest_cross_) {
    return refuse("has embeddings=", item.embeddings,
                  ": the cross groups hold 1 to encoder_len=", longest_cross_,
                  ", shorten the input or raise it");
  }
  if (item.embeddings > StepEncoderBudget()) {
    return refuse("has embeddings=", item.embeddings, ": one step encodes at most ",
                  StepEncoderBudget(), ", raise encoder_budget");
  }
  return Status::Ok();
}

// REQUIRES: the request's row is the latest of the step.
void Scheduler::UseCross(Request& r, const kv::KvManager::Hit& hit) {
  ++stats_.encoder_queries;
  if (hit.cross_cached) {
    ++stats_.encoder_hits;
    return;
  }
  pass_.encoder_budget -= r.cross.embeddings;
  planned_->encoder_inputs.push_back(
      {Value(r.id), r.cross_index, /*entry=*/-1, batch_.num_rows() - 1});
  // A request after this one hits it: every step encodes before its forward pass.
  kv_.PublishCross(r.row_slot(), r.chain());
}

}  // namespace octavo::sched
