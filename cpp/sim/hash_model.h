// HashModel: an executor whose next token depends on all that its cache groups let it see, as read
// back through the block tables from a cache that it wrote itself.
//
// A token's digest covers the token and what each group shows it: the digest before it (full),
// those in its window or chunk and the sink's (windows), a running hash (states), all that the
// encoder wrote (cross). Every group keeps
// the digest in blocks of its own, all in one memory: a block that is shared wrongly, reused too
// early, by another group too, never written or read under a stale table gives other digests and so
// other tokens. The tokens of an image are made of its embeddings, as the plan's spans name them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "batch/arena.h"
#include "octavo/config.h"
#include "octavo/executor.h"
#include "octavo/step.h"
#include "sim/digest.h"
#include "sim/embeddings.h"

namespace octavo::sim {

class HashModel final : public Executor {
 public:
  HashModel(const EngineConfig& config, const batch::Arena& arena);

  // Drops and keeps what the plan says, in its order, and writes what it wants in the cross groups.
  // `inputs`: what stands behind each of the plan's encoder_inputs, or the first few where the
  // encoder then fails.
  void Encode(const StepPlan& plan, std::span<const Encoded> inputs);
  // REQUIRES: Encode, where the plan has anything for an encoder.
  Status Execute(const StepPlan& plan, std::span<int32_t> tokens) override;

  // The samples of the last step that saw a NaN; their tokens are -1.
  std::span<const int32_t> nan_samples() const { return nan_samples_; }

  // Spoils one cell that was written, chosen by `choice`; what a stray write of a kernel does.
  void Corrupt(uint64_t choice);
  // The next step computes a NaN at its token `t`.
  void BreakToken(int32_t t) { broken_token_ = t; }
  // Keeps other embeddings of an image than it should; what a mix-up of entries does.
  void CorruptItem(uint64_t choice) { embeddings_.Corrupt(choice); }

  // The cells of a block, for whoever moves blocks in and out of the cache.
  std::vector<Cell> ReadBlock(int group, int32_t block) const;
  void WriteBlock(int group, int32_t block, std::span<const Cell> cells);

 private:
  struct Group {
    GroupSpec spec;
    int index = 0;
    int32_t stride = 1;       // places of the memory a block takes
    std::vector<Cell> cells;  // one a token; of a state, the block's first
  };

  bool IsState(const Group& g) const { return g.spec.kind == GroupKind::kState; }
  bool IsCross(const Group& g) const { return g.spec.kind == GroupKind::kCross; }
  int32_t BlockAt(const Group& g, const StepPlan& plan, int32_t slot, int32_t position) const;
  const Cell& Read(const Group& g, const StepPlan& plan, int32_t slot, int32_t position);
  void Write(Group& g, const StepPlan& plan, int32_t slot, const Cell& cell);
  void Own(Group& g, int32_t block);
  void Copy(const StepPlan& plan, int32_t copy);
  void WriteRow(const StepPlan& plan, int32_t row);
  uint64_t See(const Group& g, const StepPlan& plan, int32_t slot, int32_t position);
  // Over what `query` sees before `end`. The first `known` tokens of the host's `history` must
  // agree.
  uint64_t Sum(const Group& g, const StepPlan& plan, int32_t slot, int32_t query, int32_t end,
               const int32_t* history, int32_t known);
  uint64_t SumCross(const Group& g, const StepPlan& plan, int32_t row);
  int32_t Sample(const StepPlan& plan, int32_t sample);
  int32_t Choose(const StepPlan& plan, int32_t sample, uint64_t digest) const;
  bool Allowed(const StepPlan& plan, int32_t sample, int32_t token) const;

  int32_t vocab_size_;
  const batch::Arena& arena_;
  std::vector<Group> groups_;
  std::vector<uint64_t> states_;  // of the row being written, one a group
  std::vector<uint64_t> cross_;   // what it sees of its item, one a group
  std::vector<int8_t> owner_;     // of each place: the group that wrote there last
  std::vector<int32_t> latest_;   // what each row slot sampled last
  Embeddings embeddings_;
  bool saw_nan_ = false;
  int32_t broken_token_ = -1;
  std::vector<int32_t> nan_samples_;
};

}  // namespace octavo::sim
