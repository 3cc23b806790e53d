#include "sched/ngram.h"

#include <algorithm>

namespace octavo::sched {

int32_t FindContinuation(const int32_t* tokens, int32_t count, int32_t shortest, int32_t longest) {
  const int32_t last = count - 1;
  const int32_t first = std::max(0, count - kLookupTokens);
  int32_t best = -1;
  int32_t best_length = shortest - 1;
  for (int32_t i = last - 1; i >= first + best_length; --i) {
    if (tokens[i] != tokens[last]) continue;
    const int32_t most = std::min(longest, i - first + 1);
    int32_t length = 1;
    while (length < most && tokens[i - length] == tokens[last - length]) ++length;
    if (length <= best_length) continue;
    best = i + 1;
    best_length = length;
    if (length == longest) break;
  }
  return best;
}

}  // namespace octavo::sched
