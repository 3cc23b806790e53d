#include "sched/request.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace octavo::sched {
namespace {

constexpr float kBan = -std::numeric_limits<float>::infinity();

bool IsPlainGreedy(const SamplingParams& p) {
  return p.temperature == 0.0f && p.presence_penalty == 0.0f && p.frequency_penalty == 0.0f &&
         p.repetition_penalty == 1.0f && p.logit_bias.empty() && p.bad_words.empty() &&
         p.allowed_token_ids.empty() && p.begin_suppress_tokens.empty() && p.min_tokens == 0;
}

bool UsesPenalties(const SamplingParams& p) {
  return p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f || p.repetition_penalty != 1.0f;
}

bool HasToken(const std::vector<int32_t>& list, int32_t token) {
  return std::find(list.begin(), list.end(), token) != list.end();
}

}  // namespace

void RequestEdits::Assign(const SamplingParams& params) { params_ = &params; }

void RequestEdits::Observe(const int32_t* tokens, int32_t num_tokens, int32_t prompt_len,
                           bool first) {
  tokens_ = tokens;
  num_tokens_ = num_tokens;
  prompt_len_ = prompt_len;
  first_ = first;
}

void RequestEdits::Write(batch::EditWriter& out) const {
  for (const auto& [token, value] : params_->logit_bias) out.Add(token, value);
  if (first_) {
    for (int32_t token : params_->begin_suppress_tokens) out.Add(token, kBan);
  }
  if (num_tokens_ - prompt_len_ < params_->min_tokens) {
    for (int32_t token : params_->stop_token_ids) out.Add(token, kBan);
    if (!params_->ignore_eos) {
      for (int32_t token : params_->eos_token_ids) out.Add(token, kBan);
    }
  }
  // A bad word is banned at its last token, when the output ends in all the tokens before that.
  for (const auto& word : params_->bad_words) {
    const int32_t lead = static_cast<int32_t>(word.size()) - 1;
    if (num_tokens_ - prompt_len_ < lead) continue;
    if (std::equal(word.begin(), word.end() - 1, tokens_ + num_tokens_ - lead)) {
      out.Add(word.back(), kBan);
    }
  }
}

void Request::WriteTokens() {
  int32_t* const end = tokens + num_tokens - pending;
  std::copy_n(recent, stashed, end - stashed);
  if (pending) *end = last_token;
  stashed = 0;
  pending = false;
}

batch::SampleSpec Request::DescribeSample(int32_t from_end) {
  Flush();
  batch::SampleSpec spec;
  spec.params = &params;
  spec.history = tokens;
  spec.history_len = num_tokens + (drafting ? drafts - from_end : 0);
  spec.prompt_len = prompt_len;
  spec.sample_index = num_tokens + placeholders - 1 - from_end - prompt_len;
  spec.mask = mask.empty() ? nullptr : mask.data();
  if (edits.any()) {
    edits.Observe(tokens, spec.history_len, prompt_len, spec.sample_index == 0);
    spec.edits = &edits;
  }
  return spec;
}

FinishReason Request::ReasonToFinish(int32_t token, int32_t* stop_token) const {
  if (token == eos) return FinishReason::kStop;
  if (more_stops) [[unlikely]] {
    if (!params.ignore_eos && HasToken(params.eos_token_ids, token)) return FinishReason::kStop;
    if (HasToken(params.stop_token_ids, token)) {
      *stop_token = token;
      return FinishReason::kStop;
    }
  }
  return num_tokens >= stop_len ? FinishReason::kLength : FinishReason::kNone;
}

namespace {

// What an image adds to the hash of a block that it overlaps: itself, and where it stands.
struct ItemKey {
  uint64_t hash[2];
  int64_t start;  // relative to the block
};

size_t ItemKeys(const std::vector<EncoderUse>& items, int32_t first, int32_t last, ItemKey* keys) {
  auto at = std::partition_point(items.begin(), items.end(),
                                 [&](const EncoderUse& use) { return use.end() <= first; });
  size_t count = 0;
  for (; at != items.end() && at->item.start < last; ++at) {
    keys[count++] = {{at->item.hash[0], at->item.hash[1]}, at->item.start - first};
  }
  return count;
}

}  // namespace

void Request::ExtendChain(const ChainHasher& hasher, int32_t block_size) {
  Flush();
  while (static_cast<int32_t>(hashes.size() + 1) * block_size <= num_tokens) {
    const Hash128& parent = hashes.empty() ? root : hashes.back();
    const int32_t first = static_cast<int32_t>(hashes.size()) * block_size;
    const std::span<const int32_t> block(tokens + first, static_cast<size_t>(block_size));
    if (items.empty()) [[likely]] {
      hashes.push_back(hasher.Next(parent, block));
      continue;
    }
    ItemKey keys[kMaxBlockSize];
    const size_t count = ItemKeys(items, first, first + block_size, keys);
    hashes.push_back(hasher.Next(parent, block, std::as_bytes(std::span(keys, count))));
  }
}

Request& RequestTable::Create() {
  uint32_t index;
  if (free_.empty()) {
    index = static_cast<uint32_t>(generations_.size());
    // All memory first: nothing has changed when there is none.
    const size_t most = std::max<size_t>(kSlab, 2 * generations_.size());
    if (index == generations_.capacity()) generations_.reserve(most);
    free_.reserve(generations_.capacity());
    if (index / kSlab == slabs_.size()) slabs_.push_back(std::make_unique<Request[]>(kSlab));
    generations_.push_back(0);
  } else {
    index = free_.back();
    free_.pop_back();
  }
  Request& request = At(index);
  request.id = RequestId{(uint64_t{++generations_[index]} << 32) | index};
  ++live_;
  return request;
}

void RequestTable::Recycle(Request& request) {
  const uint32_t index = static_cast<uint32_t>(Value(request.id));
  request.id = RequestId{};
  request.storage.reset();
  request.tokens = nullptr;
  free_.push_back(index);
  --live_;
}

void RequestTable::Abandon(Request& request) {
  --generations_[static_cast<uint32_t>(Value(request.id))];
  Recycle(request);
}

Request* RequestTable::Find(RequestId id) const {
  const uint32_t index = static_cast<uint32_t>(Value(id));
  if (index >= generations_.size()) return nullptr;
  Request& request = At(index);
  return request.id == id && Value(id) != 0 ? &request : nullptr;
}

namespace {

void AssignExtraKeys(Request& r, const RequestInput& input, bool events) {
  r.extra.salt.assign(input.cache_salt);
  r.extra.items.clear();
  if (events) {
    for (const EncoderItem& item : input.encoder_items) {
      r.extra.items.push_back({{item.hash[0], item.hash[1]}, item.start, item.length});
    }
  }
  r.told = r.extra.empty() ? nullptr : &r.extra;
}

}  // namespace

void Initialize(Request& r, const RequestInput& input, const EngineConfig& config,
                const ChainHasher& hasher, int32_t unit) {
  const std::span<const int32_t> prompt = input.prompt;
  const SamplingParams& params = input.params;
  r.prompt_len = r.num_tokens = static_cast<int32_t>(prompt.size());
  // In 64 bits: max_tokens may be as large as an int32 holds.
  r.stop_len = static_cast<int32_t>(
      std::min<int64_t>(int64_t{r.prompt_len} + params.max_tokens, config.max_model_len));
  r.storage = std::make_unique_for_overwrite<int32_t[]>(r.stop_len);
  r.tokens = r.storage.get();
  std::copy(prompt.begin(), prompt.end(), r.tokens);

  r.placeholders = 0;
  r.drafts = 0;
  r.drafting = false;
  r.computed = r.in_flight = 0;
  r.last_token = prompt.back();
  r.stashed = 0;
  r.pending = false;
  r.slot = -1;
  r.epoch = 0;
  r.status = RequestStatus::kWaiting;
  r.cached_tokens = -1;
  r.scored = r.overtaken = r.admitted_len = 0;
  r.refused_room = -1;
  r.packed = r.local_only = false;
  r.transfer = r.admitted_step = r.loads = 0;
  r.asked_us = 0;
  AssignExtraKeys(r, input, config.enable_kv_events);

  r.params = params;
  r.edits.Assign(r.params);
  r.plain_greedy = IsPlainGreedy(params);
  r.needs_history = UsesPenalties(params) || r.edits.needs_history();
  r.wants_scores = params.num_prompt_logprobs >= 0;
  r.wants_logprobs = params.num_logprobs >= 0;
  const bool one_eos = !params.ignore_eos && params.eos_token_ids.size() == 1;
  r.eos = one_eos ? params.eos_token_ids[0] : -1;
  r.more_stops =
      !params.stop_token_ids.empty() || (!params.ignore_eos && params.eos_token_ids.size() > 1);

  r.mask.clear();
  if (!params.allowed_token_ids.empty()) {
    r.mask.assign((config.vocab_size + 31) / 32, 0);
    for (int32_t token : params.allowed_token_ids) r.mask[token / 32] |= 1u << (token % 32);
  }
  r.items.clear();
  r.first_item = 0;
  r.hashes.clear();
  r.root = hasher.Root(input.cache_salt);
  r.cross = {};
  for (size_t i = 0; i < input.encoder_items.size(); ++i) {
    const EncoderItem& item = input.encoder_items[i];
    const int32_t index = static_cast<int32_t>(i);
    if (!item.cross) {
      r.items.push_back({item, index});
      continue;
    }
    // Every token sees it, so it stands before all of them like the salt.
    r.cross = {{item.hash[0], item.hash[1]}, item.embeddings};
    r.cross_index = index;
    const uint64_t key[] = {item.hash[0], item.hash[1], static_cast<uint64_t>(item.embeddings)};
    r.root = hasher.Next(r.root, {}, std::as_bytes(std::span(key)));
  }
  r.retention.Assign(input.retention, r.prompt_len);
  if (config.enable_prefix_caching) {
    r.hashes.reserve(r.stop_len / unit);
    r.ExtendChain(hasher, unit);
  }
}

}  // namespace octavo::sched
