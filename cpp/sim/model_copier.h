// ModelCopier: copies blocks of a HashModel for a host tier, at once, or late but in order:
// everything asked for is copied when the tier looks the third time.
#pragma once

#include <cstring>
#include <functional>
#include <vector>

#include "sim/hash_model.h"
#include "transfer/block_copier.h"

namespace octavo::sim {

class ModelCopier final : public transfer::BlockCopier {
 public:
  // The model is named before the first copy and must outlive it.
  explicit ModelCopier(bool slow) : slow_(slow) {}
  void set_model(HashModel* model) { model_ = model; }

  // A copy out is ordered before the next step, so it may as well read now.
  void Out(int group, int32_t block, std::byte* host) override {
    const std::vector<Cell> cells = model_->ReadBlock(group, block);
    Ask([cells, host] { std::memcpy(host, cells.data(), cells.size() * sizeof(Cell)); });
  }
  void In(int group, int32_t block, const std::byte* host) override {
    const size_t count = model_->ReadBlock(group, block).size();
    Ask([this, group, block, host, count] {
      std::vector<Cell> cells(count);
      std::memcpy(cells.data(), host, count * sizeof(Cell));
      model_->WriteBlock(group, block, cells);
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

 private:
  void Ask(std::function<void()> copy) {
    if (!slow_) return copy();
    asked_.push_back(std::move(copy));
  }

  HashModel* model_ = nullptr;
  bool slow_;
  int looks_ = 0;
  std::vector<std::function<void()>> asked_;
};

}  // namespace octavo::sim
