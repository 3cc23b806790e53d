#include "sim/embeddings.h"

#include "base/check.h"

namespace octavo::sim {

void Embeddings::Take(const StepPlan& plan, std::span<const Encoded> inputs) {
  for (const int32_t entry : plan.encoder_evicted) {
    held_ -= entries_[size_t(entry)].embeddings;
    entries_[size_t(entry)] = {};
  }
  OCTAVO_CHECK(inputs.size() <= plan.encoder_inputs.size(), "more is encoded than is asked for");
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (plan.encoder_inputs[i].entry < 0) continue;  // a cross item's are blocks of the cache
    Encoded& entry = entries_[size_t(plan.encoder_inputs[i].entry)];
    OCTAVO_CHECK(entry.embeddings == 0, "an entry is given out that was not evicted");
    entry = inputs[i];
    held_ += entry.embeddings;
    OCTAVO_CHECK(held_ <= capacity_, "more embeddings are kept than there is room for");
  }
}

void Embeddings::BeginStep(const StepPlan& plan) { spans_ = plan.encoder_spans; }

void Embeddings::Corrupt(uint64_t choice) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    Encoded& entry = entries_[(choice + i) % entries_.size()];
    if (entry.embeddings == 0) continue;
    ++entry.content;
    return;
  }
}

uint64_t Embeddings::Embedded(int32_t t, int32_t token, int32_t position) {
  while (!spans_.empty() && spans_[0].token + spans_[0].count <= t) spans_ = spans_.subspan(1);
  if (spans_.empty() || spans_[0].token > t) return TokenDigest(token, position);
  const EncoderSpan& span = spans_[0];
  const Encoded& entry = entries_[size_t(span.entry)];
  OCTAVO_CHECK(entry.embeddings > 0, "a span names an entry that holds nothing");
  if (entry.nan) return kNan;
  const int32_t offset = span.offset + t - span.token;
  const int32_t end = entry.bidirectional ? span.offset + span.count : offset + 1;
  return EmbeddedDigest(entry.content, offset, end, position);
}

}  // namespace octavo::sim
