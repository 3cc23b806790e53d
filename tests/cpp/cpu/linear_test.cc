// The product of few rows against float64.
#include <cmath>
#include <cstring>

#include "cpu/tensor.h"
#include "doctest/doctest.h"

namespace octavo::cpu {
namespace {

TEST_CASE("linear equals float64 for any shape, dtype and stride, and leaves the gaps alone") {
  std::mt19937_64 rng(11);
  ForEachIsa([&] {
    for (const DType dtype : kFloatTypes) {
      for (const int64_t m : {1, 2, 3, 4, 5, 9}) {
        for (const int64_t n : {1, 3, 4, 21}) {
          for (const int64_t k : {1, 15, 16, 40, 200}) {
            CAPTURE(m);
            CAPTURE(n);
            CAPTURE(k);
            Tensor x(dtype, {m, k}, 3), weight(dtype, {n, k}, 1), bias(dtype, {n});
            Tensor out(dtype, {m, n}, 2);
            x.Randomize(rng);
            weight.Randomize(rng);
            bias.Randomize(rng);
            REQUIRE(Linear({out.view(), x.view(), weight.view(), bias.view()}).ok());
            for (int64_t i = 0; i < m; ++i) {
              for (int64_t j = 0; j < n; ++j) {
                double want = bias.At({j}), size = std::fabs(want);
                for (int64_t c = 0; c < k; ++c) {
                  const double product = x.At({i, c}) * weight.At({j, c});
                  want += product;
                  size += std::fabs(product);
                }
                // Float sums err in proportion to what was added, the store to what is stored.
                const double got = out.At({i, j});
                const double store = dtype == DType::kF32 ? 0.0 : std::fabs(want) / 256;
                REQUIRE(std::fabs(got - want) <= size * 1e-6 + store);
              }
              CHECK(std::isnan(out.At({i, n})));
            }
          }
        }
      }
    }
  });
}

TEST_CASE("a row of linear is the same bits alone, in a batch, and for any number of threads") {
  std::mt19937_64 rng(12);
  ForEachIsa([&] {
    for (const DType dtype : kFloatTypes) {
      Tensor x(dtype, {7, 300}), weight(dtype, {1001, 300}), together(dtype, {7, 1001});
      x.Randomize(rng);
      weight.Randomize(rng);
      SetNumThreads(1);
      REQUIRE(Linear({together.view(), x.view(), weight.view(), std::nullopt}).ok());
      SetNumThreads(4);
      Tensor threaded(dtype, {7, 1001});
      REQUIRE(Linear({threaded.view(), x.view(), weight.view(), std::nullopt}).ok());
      CHECK(threaded.bytes() == together.bytes());
      SetNumThreads(0);
      for (int64_t i = 0; i < 7; ++i) {
        TensorView row = x.view();
        row.data = static_cast<char*>(row.data) + i * 300 * DTypeSize(dtype);
        row.shape[0] = 1;
        Tensor alone(dtype, {1, 1001});
        REQUIRE(Linear({alone.view(), row, weight.view(), std::nullopt}).ok());
        for (int64_t j = 0; j < 1001; ++j) REQUIRE(alone.At({0, j}) == together.At({i, j}));
      }
    }
  });
}

TEST_CASE("linear of no rows, no outputs or no columns is what algebra says") {
  Tensor x(DType::kF32, {2, 0}), weight(DType::kF32, {3, 0}), out(DType::kF32, {2, 3});
  REQUIRE(Linear({out.view(), x.view(), weight.view(), std::nullopt}).ok());
  CHECK(out.At({1, 2}) == 0.0);
  Tensor none(DType::kF32, {0, 4}), some(DType::kF32, {3, 4}), empty(DType::kF32, {0, 3});
  CHECK(Linear({empty.view(), none.view(), some.view(), std::nullopt}).ok());
}

TEST_CASE("linear names what is wrong with its tensors") {
  Tensor x(DType::kF32, {2, 8}), weight(DType::kF32, {3, 8}), out(DType::kF32, {2, 3});
  Tensor narrow(DType::kF32, {3, 7}), half(DType::kBF16, {3, 8}), bias(DType::kF32, {2});
  CHECK(Linear({out.view(), x.view(), narrow.view(), std::nullopt}).message().find("weight") !=
        std::string::npos);
  CHECK(Linear({out.view(), x.view(), half.view(), std::nullopt}).message().find("weight") !=
        std::string::npos);
  CHECK(Linear({out.view(), x.view(), weight.view(), bias.view()}).message().find("bias") !=
        std::string::npos);
  CHECK(Linear({x.view(), x.view(), weight.view(), std::nullopt}).message().find("out") !=
        std::string::npos);
}

}  // namespace
}  // namespace octavo::cpu
