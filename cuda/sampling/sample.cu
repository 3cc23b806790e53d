// Host side of sample: checks and launches.
#include "base/ops_check.h"
#include "common/rows.h"
#include "octavo/cuda_ops.h"
#include "sampling/sample.h"
#include "sampling/shape.h"

namespace octavo::cuda {

Status Sample(const SampleArgs& a, Stream stream) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  if (a.logits.shape[0] == 0) return Status::Ok();
  if (a.logits.shape[1] > kMaxVocab) {
    return InvalidOp("sample", "logits has a vocabulary of " + std::to_string(a.logits.shape[1]) +
                                   ", need at most 1048576 on CUDA");
  }
  SampleParams p{};
  p.token = a.token.ptr<int32_t>();
  p.logits = a.logits.data;
  p.stride = a.logits.stride[0];
  bool wide = WideRows(a.logits, 0);
  if (a.logits.dtype != DType::kF32) {
    p.scratch = a.scratch->ptr<float>();
    p.scratch_stride = a.scratch->stride[0];
    wide = wide && WideRows(*a.scratch, 0);
  }
  p.vocab = static_cast<int32_t>(a.logits.shape[1]);
  p.temperature = a.temperature.ptr<float>();
  p.top_k = a.top_k.ptr<int32_t>();
  p.top_p = a.top_p.ptr<float>();
  p.min_p = a.min_p.ptr<float>();
  p.presence = a.presence.ptr<float>();
  p.frequency = a.frequency.ptr<float>();
  p.repetition = a.repetition.ptr<float>();
  p.seed = a.seed.ptr<uint64_t>();
  p.sample_index = a.sample_index.ptr<int64_t>();
  p.bias_start = a.bias_start.ptr<int32_t>();
  p.bias_token = a.bias_token.ptr<int32_t>();
  p.bias_value = a.bias_value.ptr<float>();
  p.history = a.history.ptr<uint64_t>();
  p.history_len = a.history_len.ptr<int32_t>();
  p.prompt_len = a.prompt_len.ptr<int32_t>();
  p.mask = a.mask.ptr<uint64_t>();
  LaunchShape shape;
  OCTAVO_RETURN_IF_ERROR(ShapeRowTeams(a.logits.shape[0], &shape));
  shape.stream = stream;
  switch (a.logits.dtype) {
    case DType::kF32:
      return LaunchSampleOf<float>(shape, p, wide);
    case DType::kF16:
      return LaunchSampleOf<__half>(shape, p, wide);
    default:
      return LaunchSampleOf<__nv_bfloat16>(shape, p, wide);
  }
}

}  // namespace octavo::cuda
