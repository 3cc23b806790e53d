// Oracle: what the hash model answers to one request that has the model to itself.
//
// It keeps the request's tokens in order, without blocks, tables, steps or a batch, and applies the
// sampling rules and stop rules on its own: what the engine answers must be the same, token by
// token, whatever happened around the request.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "octavo/config.h"
#include "octavo/request_input.h"
#include "octavo/sampling_params.h"
#include "octavo/step.h"
#include "sim/digest.h"

namespace octavo::sim {

// A request as the simulator submits it.
struct RequestSpec {
  std::vector<int32_t> prompt;
  SamplingParams params;
  std::string salt;
  int32_t priority = 0;
  std::vector<RetentionRange> kept;
  int32_t decode_priority = kOrdinaryPriority;
  int64_t decode_duration_ms = 0;
  std::vector<EncoderItem> items;  // hash[0] is the content

  // Valid as long as the spec.
  RequestInput input() const {
    return {prompt, params, priority, salt, {kept, decode_priority, decode_duration_ms}, items};
  }
};

// The groups of an engine; one of full attention where the configuration names none.
std::vector<GroupSpec> GroupsOf(const EngineConfig& config);

class Oracle {
 public:
  struct Answer {
    int32_t token = -1;
    FinishReason reason = FinishReason::kNone;
    int32_t stop_token = -1;
  };

  // Everything referred to must outlive the oracle.
  Oracle(const EngineConfig& config, std::span<const GroupSpec> groups, const RequestSpec& spec);

  // The next output. REQUIRES: none before it ended the request.
  Answer Next();
  // Prompt and outputs given so far.
  std::span<const int32_t> tokens() const { return tokens_; }
  int32_t outputs() const { return int32_t(tokens_.size() - spec_->prompt.size()); }

 private:
  void Append(int32_t token);
  uint64_t DigestOf(int32_t token, int32_t position);
  uint64_t Sum(const GroupSpec& group, int32_t query, int32_t end) const;
  int32_t Choose(uint64_t digest) const;
  bool Allowed(int32_t token) const;
  bool EndsBadWord(int32_t token) const;

  int32_t vocab_size_;
  int32_t stop_len_;
  std::span<const GroupSpec> groups_;
  const RequestSpec* spec_;
  std::vector<int32_t> tokens_;
  std::vector<uint64_t> shown_;  // shown_[p]: the sum over the cells of the first p tokens
  size_t item_ = 0;              // the first that may lie at or after the next token
  uint64_t digest_ = 0;          // of the last token
  uint64_t state_ = 0;           // after it; states of all groups are equal
  uint64_t cross_ = 0;           // what every token sees of the cross item
};

}  // namespace octavo::sim
