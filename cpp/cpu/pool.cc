#include "cpu/pool.h"

#include <unistd.h>

#include <new>
#include <system_error>
#include <thread>

namespace octavo::cpu {
namespace {

// About 50 us: longer than the gap between two ops of a step, far shorter than a step.
constexpr int kSpins = 4000;

// A thread that cannot be started costs a system call or two; a step has hundreds of jobs.
constexpr int kJobsUntilRetry = 256;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(Starter start) : start_(start), owner_(getpid()) {}

bool Pool::StartThread(Pool& pool, int index, uint32_t seen) {
  try {
    std::thread(&Pool::Work, &pool, index, seen).detach();
    return true;
  } catch (const std::system_error&) {  // no thread left to the process
    return false;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

Pool* Pool::Shared() {
  // Without a lock, which a child might find held by a thread that it does not have.
  static std::atomic<Pool*> shared{nullptr};
  const pid_t self = getpid();
  Pool* pool = shared.load(std::memory_order_acquire);
  while (pool == nullptr || pool->owner_ != self) {
    Pool* const fresh = new (std::nothrow) Pool;
    if (fresh == nullptr) return nullptr;
    if (shared.compare_exchange_strong(pool, fresh, std::memory_order_acq_rel)) return fresh;
    delete fresh;
  }
  return pool;
}

void Pool::Grow(int workers) {
  if (workers_ >= workers || jobs_until_retry_-- > 0) return;
  jobs_until_retry_ = 0;
  // The job number is read here: a worker that starts late must not miss the job published next.
  while (workers_ < workers && start_(*this, workers_, job_.load(std::memory_order_relaxed))) {
    ++workers_;
  }
  if (workers_ < workers) jobs_until_retry_ = kJobsUntilRetry;
}

bool Pool::Run(int threads, void (*fn)(void*), void* data) {
  std::unique_lock busy(busy_, std::try_to_lock);
  if (!busy.owns_lock()) return false;
  Grow(threads - 1);
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

void Pool::Work(int index, uint32_t seen) {
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
