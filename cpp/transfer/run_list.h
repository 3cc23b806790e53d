// RunList: copies between the KV pool and host memory, neighbours joined, for whoever hands them to
// a device. Bounded: its memory is taken once, and a full list is handed over before it goes on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace octavo::transfer {

// So many bytes at these places. Three numbers, because devices are handed a table of them.
struct Run {
  int64_t pool = 0;  // bytes from the start of the pool
  int64_t host = 0;  // bytes from the start of the host memory
  int64_t bytes = 0;
};
static_assert(sizeof(Run) == 3 * sizeof(int64_t));

class RunList {
 public:
  explicit RunList(size_t limit) : limit_(limit) { runs_.reserve(limit); }

  // False when the run needs a place of its own and there is none.
  bool Add(const Run& run) {
    if (!runs_.empty() && Join(runs_.back(), run)) return true;
    if (runs_.size() == limit_) return false;
    runs_.push_back(run);
    return true;
  }
  void Clear() { runs_.clear(); }
  bool empty() const { return runs_.empty(); }
  std::span<const Run> runs() const { return runs_; }

 private:
  // Blocks come in the order of a prefix or, as requests let go of them, the other way.
  static bool Join(Run& last, const Run& run) {
    if (run.pool == last.pool + last.bytes && run.host == last.host + last.bytes) {
      last.bytes += run.bytes;
      return true;
    }
    if (run.pool + run.bytes == last.pool && run.host + run.bytes == last.host) {
      last = {run.pool, run.host, last.bytes + run.bytes};
      return true;
    }
    return false;
  }

  size_t limit_;
  std::vector<Run> runs_;
};

}  // namespace octavo::transfer
