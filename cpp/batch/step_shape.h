// Sizes that a device step is padded to, so that a few captured graphs serve every mix of rows.
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <span>
#include <vector>

#include "octavo/step.h"

namespace octavo::batch {

// What a step has room for, and what of it is compiled in.
struct StepShape {
  int32_t tokens = 0;
  int32_t rows = 0;
  int32_t samples = 0;
  int32_t queries = 0;  // tokens that a row has at most; 0: any number
  bool greedy = true;   // every sample is its highest logit

  auto operator<=>(const StepShape&) const = default;
};

// What decides a step's shape.
struct StepCounts {
  int32_t tokens = 0;
  int32_t rows = 0;
  int32_t samples = 0;
  int32_t longest = 0;  // tokens of the longest row
  bool greedy = true;
  int32_t admitted = 0;  // rows of requests that the step admitted
  bool shares = false;   // as StepPlan::shares
};

inline StepCounts CountsOf(const StepPlan& plan) {
  return {plan.num_tokens, plan.num_rows,     plan.num_samples, plan.max_query_len,
          plan.all_greedy, plan.num_admitted, plan.shares};
}

// The sizes of one engine; the lists rise and none is empty. Reading them needs no lock.
struct StepSizes {
  std::vector<int32_t> decode;        // steps that sample at every token
  std::vector<int32_t> mixed_rows;    // rows, and samples, of others
  std::vector<int32_t> mixed_tokens;  // tokens of others that a graph may hold
  int32_t eager_grain = 1;            // larger ones are rounded up to a multiple of this
  int32_t max_tokens = 0;
  int32_t max_rows = 0;
  int32_t drafted = 1;  // tokens of a row that carries all drafts it may

  // The smallest shape that holds a step. REQUIRES: the step is within max_tokens and max_rows.
  StepShape Of(const StepCounts& step) const {
    const bool single = step.longest == 1;
    const bool drafts = step.longest <= drafted && step.samples == step.tokens;
    // Who was just admitted may read what another row writes, and kernels of decode steps may read
    // a row's keys before they have stored another's. The kernels that read once what rows share
    // are those of rows of any length.
    if ((single || drafts) && step.admitted == 0) {
      const int32_t size = Fit(decode, step.tokens);
      const int32_t queries = !single ? drafted : step.shares ? 0 : 1;
      return {size, std::min(size, max_rows), size, queries, step.greedy};
    }
    const int32_t room = std::min(Fit(mixed_rows, std::max(step.rows, step.samples)), max_tokens);
    return {RoomFor(step.tokens), std::min(room, max_rows), room, 0, step.greedy};
  }

 private:
  int32_t RoomFor(int32_t tokens) const {
    if (tokens <= mixed_tokens.back()) return Fit(mixed_tokens, tokens);
    return std::min((tokens + eager_grain - 1) / eager_grain * eager_grain, max_tokens);
  }
  static int32_t Fit(std::span<const int32_t> sizes, int32_t wanted) {
    const auto fits = std::lower_bound(sizes.begin(), sizes.end(), wanted);
    return fits == sizes.end() ? sizes.back() : *fits;
  }
};

}  // namespace octavo::batch
