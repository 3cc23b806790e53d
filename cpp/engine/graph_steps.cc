#include "engine/graph_steps.h"

#include <cstring>

#include "base/strcat.h"

namespace octavo::engine {

using batch::Column;

const GraphSteps::Captured* GraphSteps::Find(const StepPlan& plan) const {
  const auto found = graphs_.find(sizes_.Of(batch::CountsOf(plan)));
  return found == graphs_.end() ? nullptr : &found->second;
}

bool GraphSteps::Takes(const StepPlan& plan) {
  const bool plain = plan.max_logprobs < 0 && plan.num_scores == 0 && plan.num_copies == 0 &&
                     plan.encoder_inputs.empty() && plan.encoder_evicted.empty() &&
                     plan.encoder_spans.empty();
  return plain && Find(plan) != nullptr && !batch::ReadsByAddress(arena_, plan);
}

// As few as there are: most steps have none.
int GraphSteps::SendEdits(const StepPlan& plan) const {
  const int32_t count = arena_.At<int32_t>(plan.slot, Column::kBiasStart)[plan.num_samples];
  if (count == 0) return 0;
  const auto slot = static_cast<size_t>(plan.slot);
  const size_t bytes = static_cast<size_t>(count) * sizeof(int32_t);
  std::memcpy(memory_.host_token[slot], arena_.At<int32_t>(plan.slot, Column::kBiasToken), bytes);
  std::memcpy(memory_.host_value[slot], arena_.At<float>(plan.slot, Column::kBiasValue), bytes);
  const int error =
      queue_.copy(queue_.context, memory_.edit_token, memory_.host_token[slot], bytes);
  if (error != 0) return error;
  return queue_.copy(queue_.context, memory_.edit_value, memory_.host_value[slot], bytes);
}

Status GraphSteps::Launch(const StepPlan& plan) {
  const Captured& step = *Find(plan);
  const auto slot = static_cast<size_t>(plan.slot);
  std::byte* piece = memory_.host[slot];
  batch::Pack(arena_, plan, step.layout, spare_slot_,
              reinterpret_cast<int64_t>(memory_.landing[slot]), piece);
  int error = plan.all_greedy ? 0 : SendEdits(plan);
  if (error == 0) {
    error =
        queue_.copy(queue_.context, memory_.columns, piece, static_cast<size_t>(step.layout.bytes));
  }
  if (error == 0) error = queue_.launch(queue_.context, step.graph);
  if (error != 0) return ToStatus(error, "launching a step");
  return NoteEnd(plan);
}

Status GraphSteps::NoteEnd(const StepPlan& plan) {
  return ToStatus(queue_.mark(queue_.context, plan.slot), "marking the end of a step");
}

Result<std::span<const int32_t>> GraphSteps::Wait(const StepPlan& plan) {
  const Status s = ToStatus(queue_.wait(queue_.context, plan.slot), "waiting for a step");
  if (!s.ok()) return s;
  return std::span(memory_.landing[static_cast<size_t>(plan.slot)],
                   static_cast<size_t>(plan.num_samples));
}

Status GraphSteps::ToStatus(int error, const char* what) const {
  if (error == 0) return Status::Ok();
  return Status::Unavailable(StrCat(what, ": ", queue_.explain(queue_.context, error)));
}

}  // namespace octavo::engine
