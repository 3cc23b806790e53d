// A pool of worker threads for processes without an OpenMP runtime. Workers spin briefly after a
// job (the next op of a step comes within microseconds) and then sleep. They live as long as the
// process.
//
// Any thread may call, also in a forked child, also while the process exits. A thread that cannot
// be started is no error: the pool goes on with those it has and tries again some jobs later.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <mutex>

namespace octavo::cpu {

class Pool {
 public:
  // Runs pool.Work(index, seen) on a new thread. False: none could be started.
  using Starter = bool (*)(Pool& pool, int index, uint32_t seen);
  static bool StartThread(Pool& pool, int index, uint32_t seen);

  explicit Pool(Starter start = &StartThread);
  // Never destroyed once it has started a thread: workers wait on it for ever.
  Pool(const Pool&) = delete;

  // The process's pool; a new one in a forked child, where the parent's workers do not exist. Null
  // without memory for it.
  static Pool* Shared();

  // Runs fn(data) on the caller and on threads - 1 workers, or as many as there are; returns when
  // all have come back. False, with nothing done, where another caller has the pool.
  bool Run(int threads, void (*fn)(void*), void* data);

  int workers() const { return workers_; }
  // What a worker does; never returns. For a Starter.
  [[noreturn]] void Work(int index, uint32_t seen);

 private:
  void Grow(int workers);

  const Starter start_;
  const pid_t owner_;
  std::mutex busy_;
  int workers_ = 0;
  int jobs_until_retry_ = 0;  // after a thread could not be started

  // A job is published by raising job_ after its fields; a worker whose index is below wanted_
  // takes part.
  std::atomic<uint32_t> job_{0};
  std::atomic<int> wanted_{0};
  std::atomic<int> pending_{0};
  void (*fn_)(void*) = nullptr;
  void* data_ = nullptr;
};

}  // namespace octavo::cpu
