// WaitingQueue: requests that wait for blocks, in scheduling order.
//
// A binary heap by OrderKey. An entry whose request has gone since is recognised by its id and
// skipped, so an abort costs nothing here. Push allocates only beyond what Reserve promised.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "sched/request.h"

namespace octavo::sched {

class WaitingQueue {
 public:
  struct Entry {
    OrderKey key;
    RequestId id{};
    bool operator>(const Entry& other) const { return key > other.key; }
  };

  // Grows by doubling: a reserve of exactly one more for each request would copy the queue each
  // time.
  void Reserve(size_t entries) {
    if (entries > heap_.capacity()) heap_.reserve(std::max(entries, 2 * heap_.capacity()));
  }
  bool empty() const { return heap_.empty(); }
  size_t size() const { return heap_.size(); }

  void Push(const Entry& entry) {
    heap_.push_back(entry);
    std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
  }

  // REQUIRES: !empty().
  Entry Pop() {
    std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
    const Entry entry = heap_.back();
    heap_.pop_back();
    return entry;
  }

 private:
  std::vector<Entry> heap_;
};

}  // namespace octavo::sched
