// KvConnector: where the KV of a prefix may come from, and go to, besides the engine's own pool.
//
// The engine calls a connector on its own thread, never from two at once, and owns all bookkeeping:
// which blocks a transfer holds, what may be looked up, when a transfer has taken too long. A
// connector moves bytes. What it moves is named by blocks: `block` of `group` is the place that a
// block table of that group names by the same number. Blocks of a transfer are held from its start
// until it is reported (TakeReports) or cancelled; nothing else reads or writes a block that is
// being loaded, and nothing writes one that is being saved. No call may throw: a connector without
// memory refuses, or reports later. docs/contracts/transfer.md is normative.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "octavo/hash128.h"
#include "octavo/ids.h"
#include "octavo/status.h"

namespace octavo {

// A request as a connector sees it; valid during the call.
struct KvRequest {
  RequestId id{};
  std::span<const int32_t> tokens;  // the known ones
  std::span<const Hash128> hashes;  // of the prefixes that end with each full unit of tokens
  Hash128 root;                     // stands before the first hash; depends on the salt
  std::string_view cache_salt;
};

// One block of a request: the `index`-th of its group's table, at place `block` of the pool.
struct KvBlock {
  int32_t group = 0;
  int32_t index = 0;
  int32_t block = 0;
};

// What a cached block holds. `tokens` are those of its last unit; `parent` covers all before them.
struct KvContent {
  int32_t group = 0;
  int32_t block = 0;
  Hash128 hash;
  Hash128 parent;
  std::span<const int32_t> tokens;
};

// Which blocks of a request's prefix the engine's own pool holds already.
class KvResidency {
 public:
  virtual ~KvResidency() = default;
  virtual bool Has(int32_t group, int32_t index) const = 0;
};

struct KvMatch {
  bool known = true;   // false: not known yet, ask again in a later step
  int32_t tokens = 0;  // that can be loaded beyond the local hit
};

// A load or a save. `id` is never used again by the same engine.
struct KvTransfer {
  uint64_t id = 0;
  KvRequest request;
  int32_t first_token = 0;          // of a load: what the pool held before; of a save: 0
  int32_t last_token = 0;           // the prefix ends before this token
  std::span<const KvBlock> blocks;  // valid during the call
};

enum class KvStart : uint8_t {
  kDone,     // the blocks are as they will be when the next step runs
  kPending,  // TakeReports will name the transfer
  kRefused,  // nothing was begun: a miss
};

enum class KvRelease : uint8_t { kFinished, kPreempted };

struct KvReport {
  uint64_t transfer = 0;
  bool ok = true;
  // Of a load that failed: this many leading tokens of the request are right in all groups.
  int32_t valid_tokens = 0;
};

class KvConnector {
 public:
  virtual ~KvConnector() = default;

  // How many tokens beyond the first `local_hit` could be loaded now. Free of side effects: the
  // engine asks again and again. A load will name only blocks that `local` has not.
  virtual KvMatch Match(const KvRequest& request, int32_t local_hit, const KvResidency& local) = 0;

  // Fill the blocks. No open step reads or writes them.
  virtual KvStart StartLoad(const KvTransfer& load) = 0;

  // Whether OnRelease is to be called: a request lets go of its blocks. kPending: they stay as they
  // are until the save is reported; kDone or kRefused: they are free when this returns. They hold
  // what was processed, whole blocks.
  virtual bool WantsReleases() const { return false; }
  virtual KvStart OnRelease(const KvTransfer&, KvRelease) { return KvStart::kRefused; }
  // Whether OnEvict is to be called: cached content is about to be overwritten by the step that is
  // being planned. A copy must read it before that step runs.
  virtual bool WantsEvictions() const { return false; }
  virtual void OnEvict(const KvContent&) {}

  // What the request's tokens from `first` on left in a cache may be wrong: a row of it failed. It
  // must not be found again. Loads of it that are under way may go on.
  virtual void OnForget(const KvRequest&, int32_t /*first*/) {}

  // The step was planned and is about to run.
  virtual void OnStepPlanned(uint64_t /*step_id*/) {}

  // Appends what has ended since the last call, at least once each; repetitions are ignored. Any
  // error means that the connector is dead: it touches no block any more and is not called again.
  virtual Status TakeReports(std::vector<KvReport>* reports) = 0;

  // Nobody waits for this transfer any more. True: it touches no block after this call, and need
  // not be reported. False: the blocks are held until it is.
  virtual bool Cancel(uint64_t transfer) = 0;

  // The engine goes on, or goes away, without the connector: on return it touches no block.
  virtual void Stop() = 0;

  // The prefix cache is reset: what was saved must not be found again.
  virtual void Reset() {}
};

}  // namespace octavo
