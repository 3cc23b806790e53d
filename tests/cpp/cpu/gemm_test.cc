// The product that does not depend on the number of rows, and the soft cap of logits.
#include <cmath>

#include "cpu/tensor.h"
#include "doctest/doctest.h"
#include "octavo/ops_invariant.h"

namespace octavo::cpu {
namespace {

TensorView RowsFrom(const Tensor& t, int64_t first, int64_t count) {
  TensorView v = t.view();
  v.data = v.ptr<char>() + first * v.stride[0] * DTypeSize(v.dtype);
  v.shape[0] = count;
  return v;
}

TEST_CASE("gemm equals float64 for any shape, dtype and stride, and leaves the gaps alone") {
  std::mt19937_64 rng(31);
  ForEachIsa([&] {
    for (const DType dtype : kFloatTypes) {
      for (const int64_t m : {1, 8, 9, 13, 97}) {
        for (const int64_t n : {1, 4, 21, 70}) {
          for (const int64_t k : {1, 16, 40, 131}) {
            CAPTURE(m);
            CAPTURE(n);
            CAPTURE(k);
            Tensor x(dtype, {m, k}, 3), weight(dtype, {n, k}, 1), bias(dtype, {n});
            Tensor out(dtype, {m, n}, 2);
            x.Randomize(rng);
            weight.Randomize(rng);
            bias.Randomize(rng);
            REQUIRE(Gemm({out.view(), x.view(), weight.view(), bias.view()}).ok());
            for (int64_t i = 0; i < m; ++i) {
              for (int64_t j = 0; j < n; ++j) {
                double want = bias.At({j}), size = std::fabs(want);
                for (int64_t c = 0; c < k; ++c) {
                  const double product = x.At({i, c}) * weight.At({j, c});
                  want += product;
                  size += std::fabs(product);
                }
                const double store = dtype == DType::kF32 ? 0.0 : std::fabs(want) / 256;
                REQUIRE(std::fabs(out.At({i, j}) - want) <= size * 1e-6 + store);
              }
              CHECK(std::isnan(out.At({i, n})));
            }
          }
        }
      }
    }
  });
}

TEST_CASE("a row of gemm is the same bits for any number of rows, place and number of threads") {
  std::mt19937_64 rng(32);
  ForEachIsa([&] {
    for (const DType dtype : kFloatTypes) {
      for (const bool biased : {false, true}) {
        // Blocks of 96 rows end inside; 3000 columns make them smaller.
        for (const int64_t k : {50, 3000}) {
          const int64_t m = 200, n = 101;
          Tensor x(dtype, {m, k}, 1), weight(dtype, {n, k}), bias(dtype, {n});
          Tensor whole(dtype, {m, n});
          x.Randomize(rng);
          weight.Randomize(rng);
          bias.Randomize(rng);
          const auto offset = biased ? std::optional(bias.view()) : std::nullopt;
          SetNumThreads(1);
          REQUIRE(Gemm({whole.view(), x.view(), weight.view(), offset}).ok());
          for (const int threads : {1, 4}) {
            SetNumThreads(threads);
            Tensor parts(dtype, {m, n});
            for (int64_t first = 0; first < m;) {
              const int64_t sizes[] = {1, 2, 7, 8, 9, 40};
              const int64_t count = std::min(m - first, sizes[rng() % 6]);
              REQUIRE(Gemm({RowsFrom(parts, first, count), RowsFrom(x, first, count), weight.view(),
                            offset})
                          .ok());
              first += count;
            }
            CHECK(parts.bytes() == whole.bytes());
          }
          SetNumThreads(0);
        }
      }
    }
  });
}

TEST_CASE("gemm of no rows, no outputs or no columns is what algebra says") {
  Tensor x(DType::kF32, {20, 0}), weight(DType::kF32, {3, 0}), out(DType::kF32, {20, 3});
  REQUIRE(Gemm({out.view(), x.view(), weight.view(), std::nullopt}).ok());
  CHECK(out.At({19, 2}) == 0.0);
  Tensor none(DType::kF32, {0, 4}), some(DType::kF32, {3, 4}), empty(DType::kF32, {0, 3});
  CHECK(Gemm({empty.view(), none.view(), some.view(), std::nullopt}).ok());
  Tensor many(DType::kF32, {20, 4}), nothing(DType::kF32, {0, 4}), thin(DType::kF32, {20, 0});
  CHECK(Gemm({thin.view(), many.view(), nothing.view(), std::nullopt}).ok());
}

TEST_CASE("gemm and soft_cap name what is wrong with their tensors") {
  Tensor x(DType::kF32, {2, 8}), weight(DType::kF32, {3, 8}), out(DType::kF32, {2, 3});
  Tensor narrow(DType::kF32, {3, 7}), half(DType::kBF16, {3, 8}), bias(DType::kF32, {2});
  CHECK(Refused(Gemm({out.view(), x.view(), narrow.view(), std::nullopt}), "weight"));
  CHECK(Refused(Gemm({out.view(), x.view(), half.view(), std::nullopt}), "weight"));
  CHECK(Refused(Gemm({out.view(), x.view(), weight.view(), bias.view()}), "bias"));
  CHECK(Refused(Gemm({x.view(), x.view(), weight.view(), std::nullopt}), "out"));
  CHECK(Refused(SoftCap({x.view(), 0.0f}), "cap is 0"));
  CHECK(Refused(SoftCap({x.view(), NAN}), "cap is nan"));
}

TEST_CASE("a soft cap is that of float64, wherever in its row a value stands") {
  std::mt19937_64 rng(33);
  ForEachIsa([&] {
    Tensor x(DType::kF32, {3, 40001}, 2);
    x.Randomize(rng, 30.0);
    Tensor shifted(DType::kF32, {3, 40000});
    std::vector<double> before;
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t j = 0; j < 40001; ++j) before.push_back(x.At({i, j}));
      for (int64_t j = 0; j < 40000; ++j) shifted.Set({i, j}, x.At({i, j + 1}));
    }
    REQUIRE(SoftCap({x.view(), 8.0f}).ok());
    REQUIRE(SoftCap({shifted.view(), 8.0f}).ok());
    for (int64_t i = 0; i < 3; ++i) {
      CHECK(std::isnan(x.At({i, 40001})));
      for (int64_t j = 0; j < 40001; ++j) {
        const double want = 8.0 * std::tanh(before[static_cast<size_t>(i * 40001 + j)] / 8.0);
        REQUIRE(std::fabs(x.At({i, j}) - want) <= 4e-6);
        if (j > 0) REQUIRE(x.At({i, j}) == shifted.At({i, j - 1}));
      }
    }
  });
}

}  // namespace
}  // namespace octavo::cpu
