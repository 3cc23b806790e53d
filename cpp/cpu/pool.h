// A pool of worker threads for processes without an OpenMP runtime. Workers spin briefly after a
// job (the next op of a step comes within microseconds) and then sleep. They live as long as the
// process.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <mutex>

namespace octavo::cpu {

class Pool {
 public:
  // The process's pool; a new one in a forked child, where the parent's workers do not exist.
  static Pool& Shared();

  // Runs fn(data) on the caller and on threads - 1 workers; returns when all have come back. False,
  // with nothing done, where another caller has the pool or a thread cannot be started.
  bool Run(int threads, void (*fn)(void*), void* data);

 private:
  explicit Pool(pid_t owner) : owner_(owner) {}

  void Worker(int index, uint32_t seen);

  const pid_t owner_;
  std::mutex busy_;
  int workers_ = 0;

  // A job is published by raising job_ after its fields; a worker whose index is below wanted_
  // takes part.
  std::atomic<uint32_t> job_{0};
  std::atomic<int> wanted_{0};
  std::atomic<int> pending_{0};
  void (*fn_)(void*) = nullptr;
  void* data_ = nullptr;
};

}  // namespace octavo::cpu
