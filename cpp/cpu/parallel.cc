#include "cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

#include "cpu/openmp.h"
#include "cpu/pool.h"
#include "octavo/ops.h"

namespace octavo::cpu {
namespace {

constexpr int kMaxThreads = 1024;

std::atomic<int>& RequestedThreads() {
  static std::atomic<int> requested{0};
  return requested;
}

bool& InsideTask() {
  thread_local bool inside = false;
  return inside;
}

// One loop: the threads of a team take tasks until none is left.
struct Loop {
  std::atomic<int64_t> next{0};
  int64_t tasks = 0;
  void (*fn)(void*, int64_t) = nullptr;
  void* context = nullptr;

  static void Work(void* self) {
    auto* loop = static_cast<Loop*>(self);
    bool& inside = InsideTask();
    const bool outer = inside;
    inside = true;
    for (;;) {
      const int64_t task = loop->next.fetch_add(1, std::memory_order_relaxed);
      if (task >= loop->tasks) break;
      loop->fn(loop->context, task);
    }
    inside = outer;
  }
};

}  // namespace

void SetNumThreads(int n) {
  RequestedThreads().store(std::clamp(n, 0, kMaxThreads), std::memory_order_relaxed);
}

int NumThreads() {
  const int requested = RequestedThreads().load(std::memory_order_relaxed);
  if (requested > 0) return requested;
  const OpenMp& omp = LoadedOpenMp();
  if (omp.max_threads != nullptr) return std::clamp(omp.max_threads(), 1, kMaxThreads);
  static const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  return std::min(cores, kMaxThreads);
}

const char* ThreadBackend() { return LoadedOpenMp().parallel != nullptr ? "openmp" : "pool"; }

void ParallelRun(int64_t tasks, void (*fn)(void*, int64_t), void* context) {
  Loop loop;
  loop.tasks = tasks;
  loop.fn = fn;
  loop.context = context;
  const int threads = tasks > 1 && !InsideTask() ? NumThreads() : 1;
  if (threads == 1) return Loop::Work(&loop);
  const OpenMp& omp = LoadedOpenMp();
  if (omp.parallel != nullptr) {
    if (omp.in_parallel() != 0) return Loop::Work(&loop);
    // Always the full team, even for fewer tasks: another size would make the runtime end and start
    // threads.
    omp.parallel(Loop::Work, &loop, static_cast<unsigned>(threads), 0);
    return;
  }
  Pool* const pool = Pool::Shared();
  if (!pool || !pool->Run(threads, Loop::Work, &loop)) Loop::Work(&loop);
}

}  // namespace octavo::cpu
