// The sampling ops of octavo._ops.
#include "octavo/ops.h"
#include "ops_views.h"

namespace octavo::bindings {
namespace {

void Argmax(const Tensor& token, const Tensor& logits) {
  const ArgmaxArgs args{View("token", token), View("logits", logits)};
  Call(cpu::Argmax, args);
}

void Sample(const Tensor& token, const Tensor& logits, const Tensor& temperature,
            const Tensor& top_k, const Tensor& top_p, const Tensor& min_p, const Tensor& presence,
            const Tensor& frequency, const Tensor& repetition, const Tensor& seed,
            const Tensor& sample_index, const Tensor& bias_start, const Tensor& bias_token,
            const Tensor& bias_value, const Tensor& history, const Tensor& history_len,
            const Tensor& prompt_len, const Tensor& mask) {
  SampleArgs args;
  args.token = View("token", token);
  args.logits = View("logits", logits);
  args.temperature = View("temperature", temperature);
  args.top_k = View("top_k", top_k);
  args.top_p = View("top_p", top_p);
  args.min_p = View("min_p", min_p);
  args.presence = View("presence", presence);
  args.frequency = View("frequency", frequency);
  args.repetition = View("repetition", repetition);
  args.seed = View("seed", seed);
  args.sample_index = View("sample_index", sample_index);
  args.bias_start = View("bias_start", bias_start);
  args.bias_token = View("bias_token", bias_token);
  args.bias_value = View("bias_value", bias_value);
  args.history = View("history", history);
  args.history_len = View("history_len", history_len);
  args.prompt_len = View("prompt_len", prompt_len);
  args.mask = View("mask", mask);
  Call(cpu::Sample, args);
}

void Logprobs(const Tensor& ids, const Tensor& values, const Tensor& rank, const Tensor& logits,
              const Tensor& token, int64_t k) {
  const LogprobsArgs args{View("ids", ids),       View("values", values), View("rank", rank),
                          View("logits", logits), View("token", token),   k};
  Call(cpu::Logprobs, args);
}

}  // namespace

void BindSampling(nb::module_& m) {
  const auto arg = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("argmax", &Argmax, arg("token"), arg("logits"));
  m.def("sample", &Sample, arg("token"), arg("logits"), arg("temperature"), arg("top_k"),
        arg("top_p"), arg("min_p"), arg("presence"), arg("frequency"), arg("repetition"),
        arg("seed"), arg("sample_index"), arg("bias_start"), arg("bias_token"), arg("bias_value"),
        arg("history"), arg("history_len"), arg("prompt_len"), arg("mask"));
  m.def("logprobs", &Logprobs, arg("ids"), arg("values"), arg("rank"), arg("logits"), arg("token"),
        nb::arg("k"));
}

}  // namespace octavo::bindings
