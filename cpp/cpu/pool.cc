#include "cpu/pool.h"

#include <unistd.h>

#include <system_error>
#include <thread>

namespace octavo::cpu {
namespace {

// About 50 us: longer than the gap between two ops of a step, far shorter than a step.
constexpr int kSpins = 4000;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Pool& Pool::Shared() {
  // Never destroyed: workers may still wait on it while the process exits.
  static std::atomic<Pool*> shared{nullptr};
  static std::mutex mutex;
  const pid_t self = getpid();
  Pool* pool = shared.load(std::memory_order_acquire);
  if (pool != nullptr && pool->owner_ == self) return *pool;
  std::lock_guard lock(mutex);
  pool = shared.load(std::memory_order_relaxed);
  if (pool == nullptr || pool->owner_ != self) {
    pool = new Pool(self);
    shared.store(pool, std::memory_order_release);
  }
  return *pool;
}

bool Pool::Run(int threads, void (*fn)(void*), void* data) {
  std::unique_lock busy(busy_, std::try_to_lock);
  if (!busy.owns_lock()) return false;
  while (workers_ < threads - 1) {
    try {
      // The job number is read here: a worker that starts late must not miss the job published
      // below.
      std::thread(&Pool::Worker, this, workers_, job_.load(std::memory_order_relaxed)).detach();
    } catch (const std::system_error&) {
      return false;
    }
    ++workers_;
  }
  fn_ = fn;
  data_ = data;
  wanted_.store(threads - 1, std::memory_order_relaxed);
  // Every worker answers every job, also one that does not take part: fn_ may then be overwritten
  // safely.
  pending_.store(workers_, std::memory_order_relaxed);
  job_.fetch_add(1, std::memory_order_release);
  job_.notify_all();
  fn(data);
  for (int spin = 0;; ++spin) {
    const int pending = pending_.load(std::memory_order_acquire);
    if (pending == 0) return true;
    if (spin < kSpins) {
      Pause();
    } else {
      pending_.wait(pending, std::memory_order_acquire);
    }
  }
}

void Pool::Worker(int index, uint32_t seen) {
  for (;;) {
    for (int spin = 0; job_.load(std::memory_order_acquire) == seen; ++spin) {
      if (spin < kSpins) {
        Pause();
      } else {
        job_.wait(seen, std::memory_order_acquire);
      }
    }
    ++seen;
    if (index < wanted_.load(std::memory_order_relaxed)) fn_(data_);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
  }
}

}  // namespace octavo::cpu
