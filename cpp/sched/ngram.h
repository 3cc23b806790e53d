// Prompt lookup: what followed the last time that a text ended as it does now.
//
// Answers repeat their prompts (code under edit, quoted documents) and themselves. A guess from the
// request's own tokens needs no second model and costs one pass over the latest kLookupTokens.
#pragma once

#include <cstdint>

namespace octavo::sched {

// How far back is looked. A pass over this many tokens that finds nothing takes a few microseconds.
inline constexpr int32_t kLookupTokens = 8192;

// Where the continuation of the best match starts in tokens[0, count), -1: nothing matches. The
// match ends there and equals the last `longest` tokens, or as many of them as any, but not fewer
// than `shortest`; the latest of the longest counts. REQUIRES: 1 <= shortest <= longest.
int32_t FindContinuation(const int32_t* tokens, int32_t count, int32_t shortest, int32_t longest);

}  // namespace octavo::sched
