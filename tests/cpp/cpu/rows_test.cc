// RMSNorm, RoPE and gated activations against float64.
#include <cmath>

#include "cpu/tensor.h"
#include "doctest/doctest.h"
#include "octavo/ops_moe.h"

namespace octavo::cpu {
namespace {

// The norm's factor of one row given as a function of the index.
template <typename F>
double InverseRms(F x, int64_t n, double eps) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += x(i) * x(i);
  return 1.0 / std::sqrt(sum / static_cast<double>(n) + eps);
}

TEST_CASE("rms_norm equals float64 for any width, dtype and stride, and leaves the gaps alone") {
  std::mt19937_64 rng(1);
  ForEachIsa([&] {
    for (const DType dtype : kFloatTypes) {
      for (const int64_t n : {1, 3, 16, 17, 64, 100, 576, 2048}) {
        CAPTURE(n);
        Tensor x(dtype, {3, 2, n}, 5), weight(dtype, {n}), out(dtype, {3, 2, n}, 1);
        x.Randomize(rng, 3.0);
        weight.Randomize(rng);
        REQUIRE(RmsNorm({out.view(), x.view(), weight.view(), 1e-5f, 1.0f}).ok());
        for (int64_t i = 0; i < 3; ++i) {
          for (int64_t h = 0; h < 2; ++h) {
            const double inverse = InverseRms([&](int64_t j) { return x.At({i, h, j}); }, n, 1e-5);
            for (int64_t j = 0; j < n; ++j) {
              const double want = x.At({i, h, j}) * inverse * (weight.At({j}) + 1.0);
              REQUIRE(Close(dtype, out.At({i, h, j}), want));
            }
            CHECK(std::isnan(out.At({i, h, n})));
          }
        }
      }
    }
  });
}

TEST_CASE("rms_norm may write over its input") {
  std::mt19937_64 rng(2);
  Tensor x(DType::kF32, {40, 512}), out(DType::kF32, {40, 512}), weight(DType::kF32, {512});
  x.Randomize(rng);
  weight.Randomize(rng);
  REQUIRE(RmsNorm({out.view(), x.view(), weight.view(), 1e-6f, 0.0f}).ok());
  REQUIRE(RmsNorm({x.view(), x.view(), weight.view(), 1e-6f, 0.0f}).ok());
  CHECK(x.bytes() == out.bytes());
}

TEST_CASE("add_rms_norm rounds the residual before it takes the norm") {
  std::mt19937_64 rng(3);
  ForEachIsa([&] {
    for (const DType dtype : kFloatTypes) {
      for (const int64_t n : {1, 15, 64, 200}) {
        Tensor x(dtype, {5, n}, 2), residual(dtype, {5, n}, 3);
        Tensor weight(dtype, {n}), out(dtype, {5, n});
        x.Randomize(rng);
        residual.Randomize(rng, 2.0);
        weight.Randomize(rng);
        const Tensor before = residual;
        REQUIRE(
            AddRmsNorm({out.view(), x.view(), residual.view(), weight.view(), 1e-6f, 0.0f}).ok());
        for (int64_t i = 0; i < 5; ++i) {
          const auto sum = [&](int64_t j) { return residual.At({i, j}); };
          const double inverse = InverseRms(sum, n, 1e-6);
          for (int64_t j = 0; j < n; ++j) {
            const double added = static_cast<double>(static_cast<float>(x.At({i, j})) +
                                                     static_cast<float>(before.At({i, j})));
            REQUIRE(residual.At({i, j}) == residual.Rounded(added));
            REQUIRE(Close(dtype, out.At({i, j}), sum(j) * inverse * weight.At({j})));
          }
        }
      }
    }
  });
}

TEST_CASE("rope rotates halves or pairs of the first dims and leaves the others alone") {
  std::mt19937_64 rng(4);
  constexpr int64_t kTokens = 7, kPositions = 33;
  ForEachIsa([&] {
    for (const DType dtype : kFloatTypes) {
      for (const auto& [dim, rotary] :
           {std::pair<int64_t, int64_t>{64, 64}, {128, 32}, {80, 80}, {96, 22}, {8, 2}, {40, 0}}) {
        for (const bool interleaved : {false, true}) {
          CAPTURE(dim);
          CAPTURE(rotary);
          Tensor q(dtype, {kTokens, 3, dim}, 8), k(dtype, {kTokens, 1, dim}, 1);
          Tensor table(DType::kF32, {kPositions, rotary}, 4);
          std::vector<int32_t> position;
          for (int64_t i = 0; i < kTokens; ++i) position.push_back(int32_t(rng() % kPositions));
          q.Randomize(rng);
          k.Randomize(rng);
          for (int64_t p = 0; p < kPositions; ++p) {
            for (int64_t i = 0; i < rotary / 2; ++i) {
              table.Set({p, i}, std::cos(0.3 * double(p * (i + 1))));
              table.Set({p, rotary / 2 + i}, std::sin(0.3 * double(p * (i + 1))));
            }
          }
          std::vector<double> before;
          q.Each([&](int64_t offset) { before.push_back(q.Get(offset)); });
          REQUIRE(Rope({q.view(), k.view(), Column(position), table.view(), interleaved}).ok());
          for (int64_t t = 0; t < kTokens; ++t) {
            for (int64_t h = 0; h < 3; ++h) {
              const double* x = before.data() + (t * 3 + h) * dim;
              for (int64_t d = 0; d < dim; ++d) {
                double want = x[d];
                if (d < rotary) {
                  const int64_t pair = interleaved ? d / 2 : d % (rotary / 2);
                  const bool second = interleaved ? d % 2 == 1 : d >= rotary / 2;
                  const double a = x[interleaved ? 2 * pair : pair];
                  const double b = x[interleaved ? 2 * pair + 1 : pair + rotary / 2];
                  const double c = table.At({position[size_t(t)], pair});
                  const double s = table.At({position[size_t(t)], rotary / 2 + pair});
                  want = second ? b * c + a * s : a * c - b * s;
                }
                REQUIRE(Close(dtype, q.At({t, h, d}), want));
              }
            }
          }
        }
      }
    }
  });
}

TEST_CASE("gated activations equal float64, also where exp overflows") {
  std::mt19937_64 rng(5);
  constexpr double kSqrt2OverPi = 0.7978845608028654;
  ForEachIsa([&] {
    for (const DType dtype : kFloatTypes) {
      for (const int64_t n : {1, 5, 64, 301, 9000}) {
        Tensor gate_up(dtype, {2, 2 * n}, 3), silu(dtype, {2, n}), gelu(dtype, {2, n}, 2);
        gate_up.Randomize(rng, 4.0);
        gate_up.Set({0, 0}, -120.0);
        gate_up.Set({1, 0}, 120.0);
        REQUIRE(SiluMul({silu.view(), gate_up.view()}).ok());
        REQUIRE(GeluTanhMul({gelu.view(), gate_up.view()}).ok());
        for (int64_t i = 0; i < 2; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            const double g = gate_up.At({i, j}), up = gate_up.At({i, n + j});
            const double u = kSqrt2OverPi * (g + 0.044715 * g * g * g);
            REQUIRE(Close(dtype, silu.At({i, j}), g / (1 + std::exp(-g)) * up, std::fabs(g * up)));
            REQUIRE(Close(dtype, gelu.At({i, j}), 0.5 * g * (1 + std::tanh(u)) * up,
                          std::fabs(g * up)));
          }
        }
      }
    }
  });
}

TEST_CASE("16-bit floats round to the nearest, ties to even, on every instruction set") {
  // The residual add shows every result: a pair of halves for each of 65,536 patterns.
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    ForEachIsa([&] {
      constexpr int64_t kCount = 65536;
      Tensor x(dtype, {1, kCount}), residual(dtype, {1, kCount}), out(dtype, {1, kCount});
      Tensor weight(dtype, {kCount});
      for (int64_t i = 0; i < kCount; ++i) {
        x.view().ptr<uint16_t>()[i] = uint16_t(i);
        residual.view().ptr<uint16_t>()[i] = uint16_t(i * 7919);
      }
      const Tensor before = residual;
      REQUIRE(AddRmsNorm({out.view(), x.view(), residual.view(), weight.view(), 1.0f, 0.0f}).ok());
      for (int64_t i = 0; i < kCount; ++i) {
        const double exact = x.At({0, i}) + before.At({0, i});
        const double want = residual.Rounded(static_cast<double>(static_cast<float>(exact)));
        const double got = residual.At({0, i});
        CAPTURE(i);
        REQUIRE((got == want || (std::isnan(got) && std::isnan(want))));
      }
    });
  }
}

TEST_CASE("row ops refuse wrong shapes, dtypes and positions") {
  Tensor x(DType::kF32, {4, 8}), out(DType::kF32, {4, 8}), half(DType::kF16, {4, 8});
  Tensor weight(DType::kF32, {8}), narrow(DType::kF32, {7}), q(DType::kF32, {4, 2, 8});
  Tensor table(DType::kF32, {10, 8}), odd(DType::kF32, {10, 7}), wide(DType::kF32, {10, 10});
  CHECK(Refused(RmsNorm({out.view(), x.view(), narrow.view(), 1e-6f, 0}),
                "weight has shape [7], need [8]"));
  CHECK(
      Refused(RmsNorm({half.view(), x.view(), weight.view(), 1e-6f, 0}), "out has dtype float16"));
  CHECK(Refused(RmsNorm({out.view(), x.view(), weight.view(), -1.0f, 0}), "eps"));
  CHECK(Refused(AddRmsNorm({out.view(), x.view(), x.view(), weight.view(), 1e-6f, 0}), "residual"));
  CHECK(Refused(SiluMul({out.view(), x.view()}), "gate_up has shape [4, 8], need [4, 16]"));
  std::vector<int32_t> position = {0, 1, 10, 3};
  CHECK(Refused(Rope({q.view(), q.view(), Column(position), table.view(), false}),
                "position[2] is 10, need 0 to 9"));
  position[2] = -1;
  CHECK(Refused(Rope({q.view(), q.view(), Column(position), table.view(), false}), "position[2]"));
  position[2] = 2;
  CHECK(Refused(Rope({q.view(), q.view(), Column(position), odd.view(), false}), "7 columns"));
  CHECK(Refused(Rope({q.view(), q.view(), Column(position), wide.view(), false}), "10 columns"));
  TensorView sparse = x.view();
  sparse.stride[1] = 2;
  sparse.shape[1] = 4;
  Tensor small(DType::kF32, {4, 4}), small_weight(DType::kF32, {4});
  CHECK(Refused(RmsNorm({small.view(), sparse, small_weight.view(), 1e-6f, 0}), "contiguous"));
  TensorView folded = out.view();
  folded.stride[0] = 0;
  CHECK(Refused(RmsNorm({folded, x.view(), weight.view(), 1e-6f, 0}), "stride 0"));
}

TEST_CASE("no op writes over the indices that it follows") {
  // They were checked before the first write; what is written over them would not be.
  std::vector<int32_t> ids(8, 1), start(3), position(4, 0), row_slot(1, 0), query_start = {0, 4};
  const TensorView over = TensorView::Dense(ids.data(), DType::kI32, {2, 2});
  const TensorView token = TensorView::Dense(ids.data() + 4, DType::kI32, {4});
  CHECK(Refused(MoeGroup({over, token, Column(start), over}), "shares memory with an input"));
  CHECK(
      Refused(KeepTokens({Column(row_slot), Column(row_slot), Column(row_slot), Column(row_slot)}),
              "shares memory with an input"));
  CHECK(FillTokens({Column(position), Column(query_start), Column(row_slot), token}).ok());
  const TensorView first = TensorView::Dense(position.data(), DType::kI32, {1});
  CHECK(Refused(FillTokens({Column(position), Column(query_start), first, token}),
                "shares memory with an input"));
}

TEST_CASE("a block size that no position can count is refused") {
  std::vector<int32_t> position(4, 0), row_slot(1, 0), query_start = {0, 4}, table(4, 1);
  std::vector<int64_t> slot(4);
  SlotMappingArgs a{TensorView::Dense(slot.data(), DType::kI64, {4}),
                    Column(position),
                    Column(query_start),
                    Column(row_slot),
                    TensorView::Dense(table.data(), DType::kI32, {1, 4}),
                    INT64_MAX};
  CHECK(Refused(SlotMapping(a), "block_size is 9223372036854775807"));
  a.block_size = INT32_MAX;
  CHECK(SlotMapping(a).ok());
}

TEST_CASE("ops accept no tokens at all") {
  Tensor x(DType::kF32, {0, 8}), out(DType::kF32, {0, 8}), weight(DType::kF32, {8});
  Tensor q(DType::kF32, {0, 2, 8}), table(DType::kF32, {10, 8}), gate_up(DType::kF32, {0, 16});
  std::vector<int32_t> none;
  CHECK(RmsNorm({out.view(), x.view(), weight.view(), 1e-6f, 0}).ok());
  CHECK(Rope({q.view(), q.view(), Column(none), table.view(), true}).ok());
  CHECK(SiluMul({out.view(), gate_up.view()}).ok());
}

}  // namespace
}  // namespace octavo::cpu
