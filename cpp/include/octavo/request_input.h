// RequestInput: a request as it is submitted.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "octavo/encoder.h"
#include "octavo/retention.h"
#include "octavo/sampling_params.h"

namespace octavo {

// Only read during the call that takes it.
struct RequestInput {
  std::span<const int32_t> prompt;
  const SamplingParams& params;
  int32_t priority = 0;
  std::string_view cache_salt = {};  // requests with different salts share no cached prefix
  Retention retention = {};          // how long its KV is worth keeping
  std::span<const EncoderItem> encoder_items = {};  // images and audio, in order of their spans
};

}  // namespace octavo
