// EncoderBudget: what image and audio encoders allow a chunk to hold, as far as the scheduler must
// know.
#pragma once

#include <cstdint>

#include "octavo/ids.h"

namespace octavo::encoder {

class EncoderBudget {
 public:
  virtual ~EncoderBudget() = default;

  // Shortens a chunk of `count` tokens from `position` on to what can be encoded this step; a chunk
  // never ends inside a span that attends in both directions. 0: not now.
  virtual int32_t Clip(RequestId request, int32_t position, int32_t count) = 0;
};

}  // namespace octavo::encoder
