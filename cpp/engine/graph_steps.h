// GraphSteps: the steps of which a captured graph is known, each packed, copied and launched
// through a device's queue. Everything it is given lies at fixed addresses and must outlive it.
//
// Add is called while no step is being launched; else one thread launches and one may wait. Nothing
// allocates but Add.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "batch/arena.h"
#include "batch/packing.h"
#include "batch/step_shape.h"
#include "octavo/executor.h"

namespace octavo::engine {

// Pinned host memory and device memory that steps go through. The vectors have one entry for each
// host slot of the arena.
struct StagingMemory {
  std::vector<std::byte*> host;      // packed columns
  std::vector<int32_t*> host_token;  // logit edits: tokens and values
  std::vector<float*> host_value;
  std::vector<const int32_t*> landing;  // where a step's tokens arrive
  std::byte* columns = nullptr;         // on the device, as all below
  int32_t* edit_token = nullptr;
  float* edit_value = nullptr;
};

class GraphSteps final : public StepDevice {
 public:
  GraphSteps(const batch::Arena& arena, const DeviceQueue& queue, batch::StepSizes sizes,
             StagingMemory memory, int32_t spare_slot)
      : arena_(arena),
        queue_(queue),
        sizes_(std::move(sizes)),
        memory_(std::move(memory)),
        spare_slot_(spare_slot) {}

  // From now on steps of the layout's shape are launches of this graph.
  void Add(const batch::PackedLayout& layout, void* graph) {
    graphs_.insert_or_assign(layout.shape, Captured{layout, graph});
  }
  bool Takes(const StepPlan& plan) override;
  Status Launch(const StepPlan& plan) override;
  Status NoteEnd(const StepPlan& plan) override;
  Result<std::span<const int32_t>> Wait(const StepPlan& plan) override;

 private:
  struct Captured {
    batch::PackedLayout layout;
    void* graph;
  };

  const Captured* Find(const StepPlan& plan) const;
  int SendEdits(const StepPlan& plan) const;
  Status ToStatus(int error, const char* what) const;

  const batch::Arena& arena_;
  DeviceQueue queue_;
  batch::StepSizes sizes_;
  StagingMemory memory_;
  int32_t spare_slot_;
  std::map<batch::StepShape, Captured> graphs_;
};

}  // namespace octavo::engine
