#include "sim/fuzz/shrink.h"

#include <algorithm>

#include "sim/fuzz/isolate.h"

namespace octavo::sim {

std::vector<Op> Shrink(std::vector<Op> ops,
                       const std::function<bool(const std::vector<Op>&)>& fails) {
  for (size_t piece = std::max<size_t>(1, ops.size() / 2);;) {
    bool shorter = false;
    // From the end: what comes late rarely matters to what came before.
    for (size_t end = ops.size(); end > 0;) {
      const size_t begin = end > piece ? end - piece : 0;
      std::vector<Op> rest(ops.begin(), ops.begin() + std::ptrdiff_t(begin));
      rest.insert(rest.end(), ops.begin() + std::ptrdiff_t(end), ops.end());
      if (fails(rest)) {
        ops = std::move(rest);
        shorter = true;
      }
      end = std::min(begin, ops.size());
    }
    // With single operations, until a whole round finds nothing.
    if (piece == 1 && !shorter) return ops;
    piece = std::max<size_t>(1, piece / 2);
  }
}

// What fails, fails at once; a life without end is not waited for as long as the first time.
constexpr uint32_t kSeconds = 2;

Scenario ShrinkFailure(const Scenario& scenario, const std::string& failure) {
  Scenario shrunk = scenario;
  const Verdict whole = RunIsolated(scenario);
  // What was not reached cannot matter.
  if (whole.ops_done < shrunk.ops.size()) {
    Scenario head = shrunk;
    head.ops.resize(whole.ops_done);
    if (RunIsolated(head, kSeconds).failure == failure) shrunk = std::move(head);
  }
  shrunk.ops = Shrink(std::move(shrunk.ops), [&](const std::vector<Op>& ops) {
    return RunIsolated({scenario.config_seed, ops}, kSeconds).failure == failure;
  });
  return shrunk;
}

}  // namespace octavo::sim
