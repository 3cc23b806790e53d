// Request: everything the scheduler knows of one request, and RequestTable, which owns them all.
//
// A request has no phases. It has `num_tokens` verified tokens, `placeholders` tokens that a step
// in flight will sample, and `computed` tokens whose KV exists once the steps in flight have run; a
// step moves computed towards num_tokens + placeholders. `in_flight` of the computed tokens belong
// to open steps, so computed - in_flight are processed for certain.
//
// Drafts stand behind the verified tokens, in the place of the tokens that they guess: a history of
// num_tokens + i tokens holds the first i of them, and a token that equals the draft in its place
// leaves the others where they belong.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "batch/step_batch.h"
#include "kv/cache_group.h"
#include "kv/retention_plan.h"
#include "octavo/config.h"
#include "octavo/ids.h"
#include "octavo/kv_event.h"
#include "octavo/request_input.h"
#include "octavo/sampling_params.h"
#include "octavo/step.h"

namespace octavo::sched {

enum class RequestStatus : uint8_t {
  kWaiting,
  kWaitingForRemoteKv,  // a connector is loading its prefix
  kRunning,
  kPreempted,  // waiting again; the KV is gone
  kFinished,   // kept until its last open step has finished
};

// Scheduling order: lower comes first.
struct OrderKey {
  int64_t major = 0;
  uint64_t arrival = 0;
  auto operator<=>(const OrderKey&) const = default;
};

// The static part of a request's logit edits: bias, bans under min_tokens, bad words.
class RequestEdits final : public batch::LogitEdits {
 public:
  void Assign(const SamplingParams& params);
  bool any() const {
    return !params_->logit_bias.empty() || !params_->begin_suppress_tokens.empty() ||
           needs_history();
  }
  // Whether the edits depend on the tokens so far, so that none of them may be in flight.
  bool needs_history() const { return params_->min_tokens > 0 || !params_->bad_words.empty(); }
  // `first`: the sample is the output's first token. Where tokens are in flight their number does
  // not say so.
  void Observe(const int32_t* tokens, int32_t num_tokens, int32_t prompt_len, bool first);
  void Write(batch::EditWriter& out) const override;

 private:
  const SamplingParams* params_ = nullptr;
  const int32_t* tokens_ = nullptr;
  int32_t num_tokens_ = 0;
  int32_t prompt_len_ = 0;
  bool first_ = false;
};

// One image or audio clip of a request.
struct EncoderUse {
  EncoderItem item;
  int32_t index = 0;   // among the items of the request
  int32_t entry = -1;  // of the encoder cache, while this request uses it
  int32_t end() const { return item.start + item.length; }
  Hash128 hash() const { return {item.hash[0], item.hash[1]}; }
};

struct alignas(64) Request {
  // What a decode step touches: one cache line, and a place in `recent`.
  int32_t* tokens = nullptr;  // all of them only after Flush: the latest may wait here
  RequestId id{};
  int32_t num_tokens = 0;
  int32_t last_token = -1;  // token num_tokens - 1
  int32_t computed = 0;
  int32_t in_flight = 0;
  int32_t stop_len = 0;  // tokens at which the request ends by length
  int32_t eos = -1;      // the only EOS id, when there is exactly one
  int32_t slot = -1;
  int8_t placeholders = 0;
  int8_t drafts = 0;  // tokens[num_tokens, num_tokens + drafts)
  uint8_t epoch = 0;  // preemptions so far: rows of another epoch are stale
  RequestStatus status = RequestStatus::kWaiting;
  bool plain_greedy = false;   // the highest logit is all it needs
  bool more_stops = false;     // `stops` must be searched
  bool needs_history = false;  // cannot run ahead of its own tokens
  bool wants_logprobs = false;
  bool packed = false;    // do not look its prefix up: its blocks must lie close together
  int8_t stashed = 0;     // how many of `recent` are not among `tokens` yet
  bool pending = false;   // nor is last_token, which comes after them
  bool drafting = false;  // its row in flight carries the drafts
  int32_t prompt_len = 0;
  int32_t cached_tokens = -1;  // -1: not admitted yet

  static constexpr int kRecent = 32;
  alignas(64) int32_t recent[kRecent];

  // The rest.
  bool wants_scores = false;
  int32_t scored = 0;  // prompt positions whose logprob was asked for already
  int32_t overtaken = 0;
  int32_t admitted_len = 0;  // tokens known when it was last admitted
  // What was free, and promised to others, when it last did not fit, and the step of that.
  int64_t refused_room = -1;  // -1: it was never refused, or must be looked at again
  int32_t refused_promised = 0;
  uint64_t refused_step = 0;
  uint64_t transfer = 0;       // the load it waits for, or that pins its prefix; 0: none
  uint64_t admitted_step = 0;  // its hit is computed once this step is over
  int64_t asked_us = 0;        // when a connector first did not know what it has; 0: not yet
  bool local_only = false;     // do not ask a connector
  uint8_t loads = 0;           // begun since it last ran
  OrderKey order;
  SamplingParams params;
  RequestEdits edits;
  std::vector<uint32_t> mask;
  std::unique_ptr<int32_t[]> storage;
  std::vector<Hash128> hashes;  // of the full blocks of known tokens
  Hash128 root;
  const KvExtraKeys* told = nullptr;  // `extra`, null when it is empty
  kv::RetentionPlan retention;
  KvExtraKeys extra;              // its salt, and where events are on its items
  std::vector<EncoderUse> items;  // images and audio, in order of their spans
  int32_t first_item = 0;         // earlier ones are processed
  kv::CrossItem cross;            // what its tokens see through cross groups
  int32_t cross_index = 0;        // of that item, among the items of the request

  RowSlot row_slot() const { return RowSlot{slot}; }
  bool live() const { return status != RequestStatus::kFinished; }
  kv::PrefixChain chain() const {
    return {{tokens, static_cast<size_t>(num_tokens)},
            hashes,
            root,
            retention.empty() ? nullptr : &retention,
            cross.embeddings > 0 ? &cross : nullptr,
            told};
  }
  // A new token stays in the hot line: finishing a step then touches no other. The next row of this
  // request puts it beside that line, and not among `tokens` before somebody reads them: each
  // request's lie on a page of their own, and walking to thousands of pages would take most of a
  // step's time.
  void Append(int32_t token) {
    Stash();
    ++num_tokens;
    last_token = token;
    pending = true;
  }
  void Stash() {
    if (!pending) return;
    if (stashed == kRecent) Flush();
    recent[stashed] = last_token;
    stashed += pending;
    pending = false;
  }
  void Flush() {
    if (stashed > 0 || pending) WriteTokens();
  }
  void WriteTokens();
  int32_t num_logprobs() const { return wants_logprobs ? params.num_logprobs : -1; }
  // The latest token is in: a draft in its place is used up if it equals it, else all are void.
  void UseDraft(int32_t token) {
    const bool guessed = tokens[num_tokens - 1] == token;
    drafts = guessed ? static_cast<int8_t>(drafts - 1) : int8_t{0};
  }
  // What a sample just planned needs, the one `from_end` before the last placeholder; brings the
  // edits up to the draft that it follows, or the latest token.
  batch::SampleSpec DescribeSample(int32_t from_end = 0);
  // Whether `token`, the latest one, ends the request; sets the stop id for stop_token_ids.
  FinishReason ReasonToFinish(int32_t token, int32_t* stop_token) const;
  // Flushes, and hashes the blocks that became full. The images inside a block are part of its
  // content.
  void ExtendChain(const ChainHasher& hasher, int32_t block_size);
};
// Side by side in memory, their hot lines fall into all sets of a cache only then.
static_assert(sizeof(Request) / 64 % 2 == 1);

// Owns requests by id. Recycled indices get a new generation, so an old id finds nothing.
class RequestTable {
 public:
  Request& Create();
  void Recycle(Request& request);
  // Takes back the latest Create, as if it had not been.
  void Abandon(Request& request);
  Request* Find(RequestId id) const;
  int32_t live() const { return live_; }

 private:
  // Side by side, so that the hot lines of a full batch lie on few pages.
  static constexpr uint32_t kSlab = 256;
  Request& At(uint32_t index) const { return slabs_[index / kSlab][index % kSlab]; }

  std::vector<std::unique_ptr<Request[]>> slabs_;
  std::vector<uint32_t> generations_;
  std::vector<uint32_t> free_;
  int32_t live_ = 0;
};

// Fills a fresh request; `unit` is the tokens of a hash unit. REQUIRES: prompt and params were
// validated.
void Initialize(Request& request, const RequestInput& input, const EngineConfig& config,
                const ChainHasher& hasher, int32_t unit);

}  // namespace octavo::sched
