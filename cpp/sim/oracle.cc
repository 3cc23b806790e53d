#include "sim/oracle.h"

#include <algorithm>

namespace octavo::sim {
namespace {

bool Has(const std::vector<int32_t>& list, int32_t token) {
  return std::find(list.begin(), list.end(), token) != list.end();
}

}  // namespace

std::vector<GroupSpec> GroupsOf(const EngineConfig& config) {
  if (!config.groups.empty()) return config.groups;
  GroupSpec full;
  full.block_size = config.block_size;
  return {full};
}

Oracle::Oracle(const EngineConfig& config, std::span<const GroupSpec> groups,
               const RequestSpec& spec)
    : vocab_size_(config.vocab_size),
      stop_len_(int32_t(std::min<int64_t>(int64_t(spec.prompt.size()) + spec.params.max_tokens,
                                          config.max_model_len))),
      groups_(groups),
      spec_(&spec) {
  tokens_.reserve(size_t(stop_len_));
  shown_.reserve(size_t(stop_len_) + 1);
  shown_.push_back(0);
  for (const EncoderItem& item : spec.items) {
    for (int32_t i = 0; item.cross && i < item.embeddings; ++i) {
      cross_ += Shown(EncodedCell(item.hash[0], i));
    }
  }
  for (int32_t token : spec.prompt) Append(token);
}

uint64_t Oracle::DigestOf(int32_t token, int32_t position) {
  const auto end = [](const EncoderItem& item) { return item.start + item.length; };
  const std::vector<EncoderItem>& items = spec_->items;
  while (item_ < items.size() && end(items[item_]) <= position) ++item_;
  if (item_ == items.size() || items[item_].start > position) return TokenDigest(token, position);
  const EncoderItem& item = items[item_];
  const int32_t offset = position - item.start;
  return EmbeddedDigest(item.hash[0], offset, item.bidirectional ? item.length : offset + 1,
                        position);
}

void Oracle::Append(int32_t token) {
  const int32_t p = int32_t(tokens_.size());
  const uint64_t before = StateBefore(state_);
  uint64_t digest = DigestOf(token, p);
  for (const GroupSpec& g : groups_) {
    const uint64_t seen = g.kind == GroupKind::kState   ? before
                          : g.kind == GroupKind::kCross ? cross_
                          : KeepsEveryToken(g.kind)     ? digest_
                                                        : Sum(g, p, p);
    digest = Mix(digest, seen);
  }
  tokens_.push_back(token);
  shown_.push_back(shown_.back() + Shown({digest, token, p}));
  state_ = StateAfter(before, digest);
  digest_ = digest;
}

uint64_t Oracle::Sum(const GroupSpec& group, int32_t query, int32_t end) const {
  const int32_t first = FirstSeen(group, query);
  if (group.sink >= first) return shown_[end];
  return shown_[group.sink] + shown_[end] - shown_[first];
}

Oracle::Answer Oracle::Next() {
  const int32_t last = int32_t(tokens_.size()) - 1;
  uint64_t digest = 1;
  for (const GroupSpec& g : groups_) {
    digest = Mix(digest, g.kind == GroupKind::kState   ? Shown({state_, tokens_[last], last})
                         : g.kind == GroupKind::kCross ? cross_
                                                       : Sum(g, last, last + 1));
  }
  const SamplingParams& p = spec_->params;
  if (p.temperature > 0) digest = Drawn(digest, p.seed, uint64_t(outputs()));
  Answer answer;
  answer.token = Choose(digest);
  if (answer.token < 0) {
    answer.reason = FinishReason::kError;
    return answer;
  }
  Append(answer.token);
  if (!p.ignore_eos && Has(p.eos_token_ids, answer.token)) {
    answer.reason = FinishReason::kStop;
  } else if (Has(p.stop_token_ids, answer.token)) {
    answer.reason = FinishReason::kStop;
    answer.stop_token = answer.token;
  } else if (int32_t(tokens_.size()) >= stop_len_) {
    answer.reason = FinishReason::kLength;
  }
  return answer;
}

int32_t Oracle::Choose(uint64_t digest) const {
  for (int32_t i = 0; i < vocab_size_; ++i) {
    const int32_t token = int32_t((digest + uint64_t(i)) % uint64_t(vocab_size_));
    if (Allowed(token)) return token;
  }
  return -1;
}

bool Oracle::Allowed(int32_t token) const {
  const SamplingParams& p = spec_->params;
  if (!p.allowed_token_ids.empty() && !Has(p.allowed_token_ids, token)) return false;
  if (outputs() < p.min_tokens) {
    if (Has(p.stop_token_ids, token)) return false;
    if (!p.ignore_eos && Has(p.eos_token_ids, token)) return false;
  }
  return !EndsBadWord(token);
}

bool Oracle::EndsBadWord(int32_t token) const {
  for (const auto& word : spec_->params.bad_words) {
    const size_t lead = word.size() - 1;
    if (word.back() != token || size_t(outputs()) < lead) continue;
    if (std::equal(word.begin(), word.end() - 1, tokens_.end() - std::ptrdiff_t(lead))) return true;
  }
  return false;
}

}  // namespace octavo::sim
