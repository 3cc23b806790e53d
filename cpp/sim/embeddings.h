// Embeddings: what an executor keeps of images, and where the tokens of a step find them. It
// believes only the plan.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "octavo/step.h"
#include "sim/digest.h"

namespace octavo::sim {

// What an encoder makes of an item.
struct Encoded {
  uint64_t content = 0;
  int32_t embeddings = 0;
  bool bidirectional = false;  // its tokens see each other
  bool nan = false;            // the encoder failed and nobody has noticed yet
};

class Embeddings {
 public:
  // `capacity`: the most embeddings that may be kept at once.
  explicit Embeddings(int32_t capacity) : capacity_(capacity), entries_(size_t(capacity)) {}

  // Drops what the plan evicts, then keeps `inputs` under the first of its encoder_inputs.
  void Take(const StepPlan& plan, std::span<const Encoded> inputs);
  // From here DigestOf answers for the tokens of this plan, which must come in order.
  void BeginStep(const StepPlan& plan);
  // What token `t` of the step starts from: itself, or the embedding that stands for it.
  uint64_t DigestOf(int32_t t, int32_t token, int32_t position) {
    if (spans_.empty()) [[likely]]
      return TokenDigest(token, position);
    return Embedded(t, token, position);
  }
  void Corrupt(uint64_t choice);

 private:
  uint64_t Embedded(int32_t t, int32_t token, int32_t position);

  int32_t capacity_;
  int32_t held_ = 0;              // embeddings
  std::vector<Encoded> entries_;  // by entry; without embeddings: none
  std::span<const EncoderSpan> spans_;
};

}  // namespace octavo::sim
