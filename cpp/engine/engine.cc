// The engine: owns the KV manager, the step batch and the scheduler, and turns the crank.
#include "octavo/engine.h"

#include <utility>

#include "base/clock.h"
#include "base/strcat.h"
#include "engine/core_engine.h"

namespace octavo {
namespace engine {
namespace {

constexpr char kNoTier[] = "no memory for a host tier: give it less";

kv::KvConfig KvConfigOf(const EngineConfig& c) {
  kv::KvConfig kv;
  kv.num_blocks = c.num_blocks;
  kv.block_size = c.block_size;
  kv.num_slots = c.max_num_seqs;
  kv.max_tokens_per_slot = c.max_model_len;
  kv.ahead = kv::AheadOf(c);
  kv.groups = c.groups;
  kv.snapshot_interval = c.snapshot_interval;
  kv.enable_prefix_caching = c.enable_prefix_caching;
  kv.clip_chunks = c.enable_chunked_prefill;
  kv.enable_events = c.enable_kv_events;
  kv.max_events = c.max_kv_events;
  kv.sub_block_hits = c.sub_block_hits;
  kv.orders_rows = c.sharing_min_tokens > 0;
  kv.max_open_copies = c.max_steps_in_flight * c.max_num_seqs;
  return kv;
}

}  // namespace

CoreEngine::CoreEngine(const EngineConfig& config, Clock& clock, HostMemory& memory,
                       KvConnector* connector)
    : config_(config),
      kv_(KvConfigOf(config), memory),
      batch_(config, memory),
      tokens_(batch_.arena().capacity(batch::Column::kSampleToken)),
      scheduler_(config, kv_, batch_, clock, connector) {}

Result<std::unique_ptr<CoreEngine>> CoreEngine::Create(const EngineConfig& config, Clock& clock,
                                                       HostMemory& memory, KvConnector* connector) {
  using Made = Result<std::unique_ptr<CoreEngine>>;
  return OrOutOfMemory(
      "no memory for the engine's own tables: lower num_blocks, max_num_seqs or "
      "max_num_batched_tokens, or free some memory",
      [&]() -> Made {
        if (Status s = Validate(config); !s.ok()) return s;
        if (connector && !config.enable_prefix_caching) {
          return Status::InvalidArgument(
              "enable_prefix_caching=false with a KV connector: what it loads is found through the "
              "prefix cache, so enable it or leave the connector out");
        }
        return std::make_unique<CoreEngine>(config, clock, memory, connector);
      });
}

Result<RequestId> CoreEngine::AddRequest(const RequestInput& input) {
  return OrOutOfMemory(
      "no memory to queue this request: submit it again when others have ended, or lower its "
      "max_tokens or max_queued_requests",
      [&] { return scheduler_.Add(input); });
}

Status CoreEngine::LastError() const {
  try {
    return last_error_;
  } catch (const std::bad_alloc&) {
    return {last_error_.code(), "out of memory"};  // short enough to need none itself
  }
}

Status CoreEngine::CachedContent(std::vector<KvEvent>* events) const {
  Status s = OrOutOfMemory(
      "no memory to list the prefix cache: try again later, or lower num_blocks", [&]() -> Status {
        kv_.CachedContent(events);
        return Status::Ok();
      });
  if (!s.ok()) events->clear();
  return s;
}

Status CoreEngine::AddHostTier(std::byte* pool, int64_t parent_bytes, int64_t budget_bytes,
                               HostMemory& memory) {
  return OrOutOfMemory(kNoTier, [&]() -> Status {
    std::vector<int64_t> block_bytes;
    for (int g = 0; g < kv_.num_groups(); ++g) {
      block_bytes.push_back(parent_bytes / kv_.pool().split(g));
    }
    return AddHostTier(std::make_unique<transfer::MemoryCopier>(pool, std::move(block_bytes)),
                       parent_bytes, budget_bytes, memory);
  });
}

Status CoreEngine::AddHostTier(std::unique_ptr<transfer::BlockCopier> copier, int64_t parent_bytes,
                               int64_t budget_bytes, HostMemory& memory) {
  return OrOutOfMemory(kNoTier, [&]() -> Status {
    if (scheduler_.has_connector()) {
      return Status::FailedPrecondition(
          "this engine has a host tier or a KV connector already: give another engine the tier");
    }
    if (scheduler_.had_requests()) {
      return Status::FailedPrecondition(
          "requests were added to this engine before its host tier: add the tier before the first "
          "request, also when all of them have ended");
    }
    if (parent_bytes < 1) {
      return Status::InvalidArgument(
          StrCat("parent_bytes=", parent_bytes, ": give the bytes of a pool block"));
    }
    if (!config_.enable_prefix_caching) {
      return Status::InvalidArgument(
          "enable_prefix_caching=false with a host tier: what it keeps is found through the prefix "
          "cache, so enable it or leave the tier out");
    }
    auto tier =
        transfer::HostTier::Create(config_, budget_bytes, parent_bytes, std::move(copier), memory);
    if (!tier.ok()) return std::move(tier).status();
    scheduler_.Attach(**tier);
    host_tier_ = std::move(*tier);
    return Status::Ok();
  });
}

Result<std::span<const StepOutput>> CoreEngine::Step(Executor& executor) {
  const StepPlan* plan = BeginStep();
  if (!plan) return TakeEnded();
  const std::span<int32_t> tokens(tokens_.data(), plan->num_samples);
  if (Status s = executor.Execute(*plan, tokens); !s.ok()) {
    auto outputs = FailStep(plan->step_id);
    if (!outputs.ok()) return outputs;
    last_error_ = std::move(s);
    return outputs;
  }
  return FinishStep(plan->step_id, tokens);
}

}  // namespace engine

Result<std::unique_ptr<Engine>> Engine::Create(const EngineConfig& config,
                                               const EngineParts& parts) {
  auto made = engine::CoreEngine::Create(config, parts.clock ? *parts.clock : SteadyClock(),
                                         SystemMemory(), parts.connector);
  if (!made.ok()) return std::move(made).status();
  return std::unique_ptr<Engine>(std::move(*made));
}

}  // namespace octavo
