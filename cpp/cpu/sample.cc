#include "base/ops_check.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/sample_row.h"
#include "octavo/ops.h"

namespace octavo::cpu {
namespace {

// Host addresses cross as integers: columns hold no pointers.
template <typename T>
const T* FromAddress(uint64_t address) {
  return reinterpret_cast<const T*>(static_cast<uintptr_t>(address));
}

SampleRowParams RowParams(const SampleArgs& a, int64_t s) {
  const int32_t* bias_start = a.bias_start.ptr<int32_t>();
  SampleRowParams p;
  p.temperature = a.temperature.ptr<float>()[s];
  p.top_k = a.top_k.ptr<int32_t>()[s];
  p.top_p = a.top_p.ptr<float>()[s];
  p.min_p = a.min_p.ptr<float>()[s];
  p.presence = a.presence.ptr<float>()[s];
  p.frequency = a.frequency.ptr<float>()[s];
  p.repetition = a.repetition.ptr<float>()[s];
  p.seed = a.seed.ptr<uint64_t>()[s];
  p.sample_index = static_cast<uint64_t>(a.sample_index.ptr<int64_t>()[s]);
  p.bias_token = a.bias_token.ptr<int32_t>() + bias_start[s];
  p.bias_value = a.bias_value.ptr<float>() + bias_start[s];
  p.num_bias = bias_start[s + 1] - bias_start[s];
  p.history = FromAddress<int32_t>(a.history.ptr<uint64_t>()[s]);
  p.history_len = a.history_len.ptr<int32_t>()[s];
  p.prompt_len = a.prompt_len.ptr<int32_t>()[s];
  p.mask = FromAddress<uint32_t>(a.mask.ptr<uint64_t>()[s]);
  return p;
}

}  // namespace

Status Sample(const SampleArgs& a) {
  OCTAVO_RETURN_IF_ERROR(Validate(a));
  OCTAVO_RETURN_IF_ERROR(ValidateIndices(a));
  const Kernels& k = ActiveKernels();
  const int64_t vocab = a.logits.shape[1];
  const int64_t grain = GrainOfRows(vocab * 4);  // several passes over the row
  const int64_t most = a.logits.shape[0];        // one row a task: their costs differ
  ParallelRanges(most, grain, most, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      void* x = RowOf(a.logits, s);
      if (a.logits.dtype != DType::kF32) {
        void* const wide = RowOf(*a.scratch, s);
        k.widen(a.logits.dtype, static_cast<float*>(wide), x, vocab);
        x = wide;
      }
      a.token.ptr<int32_t>()[s] = SampleRow(k, static_cast<float*>(x), vocab, RowParams(a, s));
    }
  });
  return Status::Ok();
}

}  // namespace octavo::cpu
