// KvConnector: where KV may come from besides the local pool, as far as the scheduler must know.
//
// A connector answers during admission and is told when a request's blocks are final. What it loads
// must be in the blocks before the step that reads them runs. The scheduler owns no connector and
// calls it on its own thread.
#pragma once

#include <cstdint>
#include <span>

#include "octavo/ids.h"

namespace octavo::transfer {

class KvConnector {
 public:
  virtual ~KvConnector() = default;

  // How many tokens beyond the local hit can be loaded, whole blocks. Free of side effects: it may
  // be asked again for the same request.
  virtual int32_t MatchedTokens(RequestId request, std::span<const int32_t> tokens,
                                int32_t local_hit) = 0;
  // The request now holds `blocks`; `external_tokens` of MatchedTokens start after the local hit.
  // The load must be complete before the next step runs.
  virtual void OnAdmitted(RequestId request, std::span<const int32_t> blocks,
                          int32_t external_tokens) = 0;
  // The request is over; its blocks are released when this returns.
  virtual void OnFinished(RequestId request, std::span<const int32_t> blocks) = 0;
};

}  // namespace octavo::transfer
