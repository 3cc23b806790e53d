// ParallelFor: independent tasks over the worker threads.
//
// torch runs its matrix products on an OpenMP team whose workers spin for a while after each of
// them. A second pool on the same cores would fight that spinning, so where the process has an
// OpenMP runtime loaded, its team does our tasks too; elsewhere a small pool of our own does. Tasks
// are handed out one at a time, in order, so callers put heavy ones first. The order of arithmetic
// inside a task never depends on the number of threads.
//
// Any thread may call. From inside a task, or while another thread holds our own pool, the loop
// runs on the caller. Nothing is allocated after the first call with a given number of threads.
#pragma once

#include <cstdint>
#include <type_traits>

namespace octavo::cpu {

// Runs fn(context, task) for every task in [0, tasks). Tasks must not throw.
void ParallelRun(int64_t tasks, void (*fn)(void* context, int64_t task), void* context);

template <typename F>
void ParallelFor(int64_t tasks, F&& f) {
  ParallelRun(
      tasks,
      [](void* context, int64_t task) {
        (*static_cast<std::remove_reference_t<F>*>(context))(task);
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// Splits [0, n) into even ranges of at least `grain` and runs f(begin, end) on each. Work below two
// grains stays on the calling thread: waking a worker costs microseconds.
template <typename F>
void ParallelRanges(int64_t n, int64_t grain, int64_t max_ranges, F&& f) {
  const int64_t by_grain = n / (grain > 0 ? grain : 1);
  const int64_t ranges = by_grain < max_ranges ? by_grain : max_ranges;
  if (ranges <= 1) {
    if (n > 0) f(int64_t{0}, n);
    return;
  }
  ParallelFor(ranges, [&](int64_t i) { f(n * i / ranges, n * (i + 1) / ranges); });
}

}  // namespace octavo::cpu
