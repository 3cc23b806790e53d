// ModelCopier: copies blocks of a HashModel, at once, or late but in order: everything asked for is
// copied when the tier looks the third time.
#pragma once

#include <cstring>
#include <functional>
#include <vector>

#include "sim/hash_model.h"
#include "transfer/host_tier.h"

namespace octavo::engine {

class ModelCopier final : public transfer::BlockCopier {
 public:
  // Room for a third of a parent to hold the cells of a block of 16 tokens; a multiple of the
  // splits.
  static constexpr int64_t kParentBytes = 6 * 16 * sizeof(sim::Cell);

  explicit ModelCopier(bool slow) : slow_(slow) {}

  // A copy out is ordered before the next step, so it may as well read now.
  void Out(int group, int32_t block, std::byte* host) override {
    const std::vector<sim::Cell> cells = model->ReadBlock(group, block);
    Ask([cells, host] { std::memcpy(host, cells.data(), cells.size() * sizeof(sim::Cell)); });
  }
  void In(int group, int32_t block, const std::byte* host) override {
    const size_t count = model->ReadBlock(group, block).size();
    Ask([this, group, block, host, count] {
      std::vector<sim::Cell> cells(count);
      std::memcpy(cells.data(), host, count * sizeof(sim::Cell));
      model->WriteBlock(group, block, cells);
    });
  }
  bool Idle() override {
    if (!asked_.empty() && ++looks_ >= 3) Drain();
    return asked_.empty();
  }
  void Drain() override {
    for (const auto& copy : asked_) copy();
    asked_.clear();
    looks_ = 0;
  }

  sim::HashModel* model = nullptr;

 private:
  void Ask(std::function<void()> copy) {
    if (!slow_) return copy();
    asked_.push_back(std::move(copy));
  }

  bool slow_;
  int looks_ = 0;
  std::vector<std::function<void()>> asked_;
};

}  // namespace octavo::engine
