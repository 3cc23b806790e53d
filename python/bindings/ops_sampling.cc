// The sampling ops of octavo._ops.
#include <nanobind/stl/optional.h>

#include "octavo/ops.h"
#include "ops_views.h"

namespace octavo::bindings {
namespace {

void Argmax(const Tensor& token, const Tensor& logits) {
  Call call;
  const ArgmaxArgs args{call.View("token", token), call.View("logits", logits)};
  call.Run(cpu::Argmax, OCTAVO_CUDA_OP(Argmax), args);
}

void Sample(const Tensor& token, const Tensor& logits, const Tensor& temperature,
            const Tensor& top_k, const Tensor& top_p, const Tensor& min_p, const Tensor& presence,
            const Tensor& frequency, const Tensor& repetition, const Tensor& seed,
            const Tensor& sample_index, const Tensor& bias_start, const Tensor& bias_token,
            const Tensor& bias_value, const Tensor& history, const Tensor& history_len,
            const Tensor& prompt_len, const Tensor& mask, const std::optional<Tensor>& scratch) {
  Call call;
  SampleArgs args;
  args.token = call.View("token", token);
  args.logits = call.View("logits", logits);
  args.temperature = call.View("temperature", temperature);
  args.top_k = call.View("top_k", top_k);
  args.top_p = call.View("top_p", top_p);
  args.min_p = call.View("min_p", min_p);
  args.presence = call.View("presence", presence);
  args.frequency = call.View("frequency", frequency);
  args.repetition = call.View("repetition", repetition);
  args.seed = call.View("seed", seed);
  args.sample_index = call.View("sample_index", sample_index);
  args.bias_start = call.View("bias_start", bias_start);
  args.bias_token = call.View("bias_token", bias_token);
  args.bias_value = call.View("bias_value", bias_value);
  args.history = call.View("history", history);
  args.history_len = call.View("history_len", history_len);
  args.prompt_len = call.View("prompt_len", prompt_len);
  args.mask = call.View("mask", mask);
  args.scratch = call.View("scratch", scratch);
  call.Run(cpu::Sample, OCTAVO_CUDA_OP(Sample), args);
}

void Logprobs(const Tensor& ids, const Tensor& values, const Tensor& rank, const Tensor& logits,
              const Tensor& token, int64_t k) {
  Call call;
  const LogprobsArgs args{call.View("ids", ids),     call.View("values", values),
                          call.View("rank", rank),   call.View("logits", logits),
                          call.View("token", token), k};
  call.Run(cpu::Logprobs, OCTAVO_CUDA_OP(Logprobs), args);
}

}  // namespace

void BindSampling(nb::module_& m) {
  const auto arg = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("argmax", &Argmax, arg("token"), arg("logits"));
  m.def("sample", &Sample, arg("token"), arg("logits"), arg("temperature"), arg("top_k"),
        arg("top_p"), arg("min_p"), arg("presence"), arg("frequency"), arg("repetition"),
        arg("seed"), arg("sample_index"), arg("bias_start"), arg("bias_token"), arg("bias_value"),
        arg("history"), arg("history_len"), arg("prompt_len"), arg("mask"),
        arg("scratch").none() = nb::none());
  m.def("logprobs", &Logprobs, arg("ids"), arg("values"), arg("rank"), arg("logits"), arg("token"),
        nb::arg("k"));
}

}  // namespace octavo::bindings
