// ModelCopier: copies blocks of a HashModel for a host tier, at once, or late but in order:
// everything begun is copied when the tier looks the third time. At times a batch fails, and with
// it all that are under way.
#pragma once

#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "sim/hash_model.h"
#include "sim/random.h"
#include "transfer/block_copier.h"

namespace octavo::sim {

class ModelCopier final : public transfer::BlockCopier {
 public:
  // The model is named before the first copy and must outlive it. `failures`: a seed; 0: none fail.
  explicit ModelCopier(bool slow, uint64_t failures = 0)
      : slow_(slow), failing_(failures != 0), random_(failures) {}
  void set_model(HashModel* model) { model_ = model; }

  // What leaves was written by a step that is over, so it may as well be read now.
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
  uint64_t Begin() override {
    for (auto& copy : asked_) under_way_.push_back(std::move(copy));
    asked_.clear();
    ++begun_;
    if (!slow_) Drain();
    return begun_;
  }
  transfer::CopyProgress Poll() override {
    if (ended_ < begun_ && ++looks_ >= 3) Drain();
    return {ended_, failed_};
  }
  void Drain() override {
    if (ended_ < begun_ && failing_ && random_.OneIn(6)) {
      failed_ = begun_;
      under_way_.resize(random_.Below(under_way_.size() + 1));  // the rest is as it was
    }
    for (const auto& copy : under_way_) copy();
    under_way_.clear();
    looks_ = 0;
    ended_ = begun_;
  }

 private:
  void Ask(std::function<void()> copy) { asked_.push_back(std::move(copy)); }

  HashModel* model_ = nullptr;
  bool slow_;
  bool failing_;
  Random random_;
  int looks_ = 0;
  uint64_t begun_ = 0;
  uint64_t ended_ = 0;
  uint64_t failed_ = 0;
  std::vector<std::function<void()>> asked_;
  std::vector<std::function<void()>> under_way_;
};

}  // namespace octavo::sim
