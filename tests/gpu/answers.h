// What the answers in float64 have in common: they are most of the time of the tests on a GPU, so
// numbers are converted once and every core computes.
#pragma once

#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

#include "cpu/tensor.h"

namespace octavo::cuda {

// Runs f(i) for each i below count, on every core. f shares nothing and checks nothing.
template <typename F>
void OnEveryCore(int64_t count, F f) {
  std::atomic<int64_t> next{0};
  std::vector<std::jthread> threads;
  for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); ++t) {
    threads.emplace_back([&] {
      for (int64_t i = next++; i < count; i = next++) f(i);
    });
  }
}

// The elements of a tensor, without its gaps.
inline std::vector<double> Values(const cpu::Tensor& t) {
  std::vector<double> values;
  values.reserve(static_cast<size_t>(t.view().num_elements()));
  t.Each([&](int64_t at) { values.push_back(t.Get(at)); });
  return values;
}

// The sum of a[i] * b[i]: eight sums, so that none waits for the one before.
inline double Dot(const double* a, const double* b, int64_t count) {
  constexpr int kSums = 8;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int s = 0; s < kSums; ++s) sums[s] += a[i + s] * b[i + s];
  }
  for (; i < count; ++i) sums[0] += a[i] * b[i];
  return std::accumulate(sums, sums + kSums, 0.0);
}

// x W^T + b of x [M, K], weight [N, K] and bias [N] or null: [M, N].
inline std::vector<double> ProductOf(const cpu::Tensor& x, const cpu::Tensor& weight,
                                     const cpu::Tensor* bias) {
  const int64_t rows = x.dim(0), columns = weight.dim(0), k = x.dim(1);
  const std::vector<double> left = Values(x), right = Values(weight);
  std::vector<double> answer(static_cast<size_t>(rows * columns));
  OnEveryCore(columns, [&](int64_t n) {
    for (int64_t m = 0; m < rows; ++m) {
      answer[static_cast<size_t>(m * columns + n)] =
          (bias == nullptr ? 0.0 : bias->Get(n)) + Dot(&left[m * k], &right[n * k], k);
    }
  });
  return answer;
}

}  // namespace octavo::cuda
