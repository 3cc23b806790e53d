// A batch of rows to sample, for the tests of the sampler.
#pragma once

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "cpu/tensor.h"
#include "device.h"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {

// A batch of rows to sample, in host memory.
struct SampleBatch {
  SampleBatch(int64_t rows, int64_t vocab, uint64_t seed_of_batch, int64_t gap = 0)
      : rng(seed_of_batch), logits(DType::kF32, {rows, vocab}, gap) {
    logits.Randomize(rng, 2.0);
    const auto n = static_cast<size_t>(rows);
    for (auto* column : {&temperature, &top_p, &repetition}) column->assign(n, 1.0f);
    for (auto* column : {&min_p, &presence, &frequency}) column->assign(n, 0.0f);
    for (auto* column : {&top_k, &history_len, &prompt_len}) column->assign(n, 0);
    bias_start.assign(n + 1, 0);
    mask.assign(n, 0);
    history.assign(n, 0);
    for (size_t i = 0; i < n; ++i) {
      seed.push_back(rng());
      sample_index.push_back(static_cast<int64_t>(rng() % 1000));
    }
  }

  template <class ColumnOf>
  SampleArgs Args(TensorView token, TensorView view, ColumnOf column) {
    SampleArgs a;
    a.token = token;
    a.logits = view;
    a.temperature = column(temperature);
    a.top_k = column(top_k);
    a.top_p = column(top_p);
    a.min_p = column(min_p);
    a.presence = column(presence);
    a.frequency = column(frequency);
    a.repetition = column(repetition);
    a.seed = column(seed);
    a.sample_index = column(sample_index);
    a.bias_start = column(bias_start);
    a.bias_token = column(bias_token);
    a.bias_value = column(bias_value);
    a.history = column(history);
    a.history_len = column(history_len);
    a.prompt_len = column(prompt_len);
    a.mask = column(mask);
    return a;
  }

  // The CPU's tokens. `edited` are the logits afterwards.
  std::vector<int32_t> OnHost(cpu::Tensor* edited) {
    *edited = logits;
    std::vector<int32_t> token(temperature.size(), -7);
    const Status s = cpu::Sample(
        Args(cpu::Column(token), edited->view(), [](auto& c) { return cpu::Column(c); }));
    INFO(s.message());
    REQUIRE(s.ok());
    return token;
  }

  // The device's. Histories and masks are copied there.
  std::vector<int32_t> OnGpu(cpu::Tensor* edited) {
    std::vector<std::unique_ptr<OnDevice>> kept;
    const auto column = [&](auto& c) {
      kept.push_back(std::make_unique<OnDevice>(c));
      return kept.back()->view();
    };
    std::vector<int32_t> token(temperature.size(), -7);
    const OnDevice dtoken(token), dlogits(logits);
    const std::vector<uint64_t> host_history = history, host_mask = mask;
    std::unique_ptr<OnDevice> words, past;
    if (!histories.empty()) {
      past = std::make_unique<OnDevice>(histories);
      words = std::make_unique<OnDevice>(masks);
      Address(past->view().data, words->view().data);
    }
    CheckDone(Sample(Args(dtoken.view(), dlogits.view(), column), nullptr));
    REQUIRE(DeviceFinishes());
    history = host_history;
    mask = host_mask;
    *edited = logits;
    dlogits.FetchTo(edited);
    return dtoken.Column<int32_t>();
  }

  // The device's tokens of rows that are given apart, in any dtype, with nothing to edit.
  std::vector<int32_t> OnGpuFrom(const cpu::Tensor& rows, int64_t scratch_gap) {
    std::vector<std::unique_ptr<OnDevice>> kept;
    const auto column = [&](auto& c) {
      kept.push_back(std::make_unique<OnDevice>(c));
      return kept.back()->view();
    };
    std::vector<int32_t> token(temperature.size(), -7);
    const OnDevice to(token), from(rows);
    const OnDevice scratch(cpu::Tensor(DType::kF32, {rows.dim(0), rows.dim(1)}, scratch_gap));
    SampleArgs a = Args(to.view(), from.view(), column);
    if (a.logits.dtype != DType::kF32) a.scratch = scratch.view();
    CheckDone(Sample(a, nullptr));
    REQUIRE(DeviceFinishes());
    return to.Column<int32_t>();
  }

  // Leaves the columns of the first rows; what else there is stays.
  void Shorten(int64_t rows) {
    const auto n = static_cast<size_t>(rows);
    for (auto* column : {&temperature, &top_p, &repetition, &min_p, &presence, &frequency}) {
      column->resize(n);
    }
    for (auto* column : {&top_k, &history_len, &prompt_len}) column->resize(n);
    for (auto* column : {&seed, &history, &mask}) column->resize(n);
    sample_index.resize(n);
    bias_start.resize(n + 1);
  }

  // Points every row's history and mask into these.
  void Address(const void* past, const void* words) {
    const auto n = temperature.size();
    for (size_t i = 0; i < n; ++i) {
      history[i] = reinterpret_cast<uintptr_t>(past) + i * histories.size() / n * 4;
      mask[i] = reinterpret_cast<uintptr_t>(words) + i * masks.size() / n * 4;
    }
  }

  std::mt19937_64 rng;
  cpu::Tensor logits;
  std::vector<float> temperature, top_p, repetition, min_p, presence, frequency, bias_value;
  std::vector<int32_t> top_k, history_len, prompt_len, bias_start, bias_token;
  std::vector<uint64_t> seed, history, mask;
  std::vector<int64_t> sample_index;
  std::vector<int32_t> histories, masks;
};

}  // namespace octavo::cuda
