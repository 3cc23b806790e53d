// What octavo-bench measures: named numbers, some with a budget. Each suite is one function.
//
// Every timed number is the best of several rounds, because a round that shares its core with
// somebody else says more about them. Medians (p50) are taken within a round; p99 is shown, never
// checked.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace octavo::tools {

inline constexpr double kNoBudget = std::numeric_limits<double>::infinity();

struct Measure {
  std::string name;
  double value = 0;
  const char* unit = "";
  double budget = kNoBudget;
  bool binding = true;  // an aim is shown, but --check does not fail on it
};

using Measures = std::vector<Measure>;

// How much work to do: `quick` is for a first look and for sanitizer builds.
struct Effort {
  int rounds = 5;
  bool quick = false;
};

// Begin and Finish with 256, 1,024 and 4,096 requests decoding at a context of about 1k.
Measures BenchDecode(const Effort& effort);
// The same at 1,024 with six cache groups, with drafts, with KV events, with prompts that many
// share, under preemption; and images in prompts, a step of prefill.
Measures BenchMixes(const Effort& effort);
// 1,024 fresh prompts of 512 tokens: submitting them and planning the step that takes them all.
Measures BenchAdmission(const Effort& effort);
// Heap allocations of a warm step path that hits, evicts, preempts and edits logits.
Measures BenchAllocations(const Effort& effort);
// Prefix lookup on a pool of a million cached blocks.
Measures BenchLookup(const Effort& effort);
// Taking, evicting and releasing blocks through the KV manager.
Measures BenchBlocks(const Effort& effort);
// The chain hash of a block of 16 tokens.
Measures BenchHash(const Effort& effort);
// CPU paged attention: decode and prefill.
Measures BenchAttention(const Effort& effort);

// Folds the measures of another run into `all`: the better value of each.
void KeepBest(Measures* all, const Measures& more);
// `slack` is a factor on every budget; of zero nothing remains zero.
bool OverBudget(const Measures& measures, double slack);
std::string Table(const Measures& measures);
std::string Json(const Measures& measures);

using BenchClock = std::chrono::steady_clock;

inline double Nanoseconds(BenchClock::time_point from, BenchClock::time_point to) {
  return double(std::chrono::duration_cast<std::chrono::nanoseconds>(to - from).count());
}

// Keeps the compiler from dropping work whose result nobody reads.
inline void Keep(const void* value) { asm volatile("" : : "g"(value) : "memory"); }

// REQUIRES: !samples.empty(). Reorders them.
double Percentile(std::vector<double>* samples, double share);

}  // namespace octavo::tools
