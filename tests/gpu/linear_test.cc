// The product of few rows on CUDA beside float64; a row's bits, whoever stands beside it.
#include "answers.h"
#include "backend.h"
#include "cpu/tensor.h"
#include "device.h"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {
namespace {

using cpu::Tensor;

struct Product {
  int64_t m, n, k;
  int64_t gap = 0;  // elements between rows of x and the weight
  bool bias = false;
  bool weight_ready = false;
};

struct Operands {
  Operands(const Product& p, DType dtype, std::mt19937_64& rng)
      : x(dtype, {p.m, p.k}, p.gap), weight(dtype, {p.n, p.k}, p.gap), bias(dtype, {p.n}) {
    x.Randomize(rng);
    weight.Randomize(rng, 1.0 / std::sqrt(static_cast<double>(p.k)));
    bias.Randomize(rng);
  }
  Tensor x, weight, bias;
};

TensorView FirstRows(TensorView v, int64_t rows) {
  v.shape[0] = rows;
  return v;
}

// The product of the first 1, 5, ... rows of x, up to all of them.
void CheckProduct(const Product& p, DType dtype, std::mt19937_64& rng) {
  CAPTURE(p.n);
  CAPTURE(p.k);
  CAPTURE(p.gap);
  CAPTURE(static_cast<int>(dtype));
  const Operands o(p, dtype, rng);
  const OnDevice x(o.x), weight(o.weight), bias(o.bias);
  const std::vector<double> answer = ProductOf(o.x, o.weight, p.bias ? &o.bias : nullptr);
  for (const int64_t rows : {1, 3, 5, 8, 9, 16}) {
    if (rows > p.m) break;
    CAPTURE(rows);
    Tensor out(dtype, {rows, p.n}, 5);
    const OnDevice dout(out);
    LinearArgs a{dout.view(), FirstRows(x.view(), rows), weight.view(), std::nullopt,
                 p.weight_ready};
    if (p.bias) a.bias = bias.view();
    CheckDone(Linear(a, nullptr));
    REQUIRE(DeviceFinishes());
    dout.FetchTo(&out);
    double error = 0.0, norm = 0.0;
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t n = 0; n < p.n; ++n) {
        const double want = answer[static_cast<size_t>(m * p.n + n)];
        const double difference = out.At({m, n}) - want;
        error += difference * difference;
        norm += want * want;
      }
      for (int64_t n = p.n; n < p.n + 5; ++n) CHECK(std::isnan(out.Get(m * (p.n + 5) + n)));
    }
    const double relative = std::sqrt(error / norm);
    CAPTURE(relative);
    CHECK(relative < (dtype == DType::kBF16 ? 3e-3 : 4e-4));
  }
}

TEST_CASE("a CUDA product of few rows is float64's" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(1);
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const bool bias : {false, true}) {
      CheckProduct({16, 8, 8, 0, bias}, dtype, rng);
      CheckProduct({16, 40, 72, 8, !bias}, dtype, rng);
      CheckProduct({16, 130, 328, 0, bias, true}, dtype, rng);
    }
    CheckProduct({16, Size(1000, 333), Size(4096, 512), 8, true, true}, dtype, rng);
    CheckProduct({16, Size(6144, 77), Size(4096, 2048)}, dtype, rng);
    CheckProduct({3, Size(33000, 1700), Size(256, 64)}, dtype, rng);
    CheckProduct({1, 24, Size(14336, 4104)}, dtype, rng);
  }
}

TEST_CASE("a row of a CUDA product has the same bits alone and among others" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(2);
  for (const Product p : {Product{16, 40, 72}, Product{16, Size(1024, 300), Size(1000, 264)}}) {
    const Operands o(p, DType::kBF16, rng);
    const Tensor out(DType::kBF16, {p.m, p.n});
    const OnDevice x(o.x), weight(o.weight), together(out), alone(out);
    CheckDone(Linear({together.view(), x.view(), weight.view(), std::nullopt}, nullptr));
    for (int64_t m = 0; m < p.m; ++m) {
      TensorView to = alone.view(), from = x.view();
      to.data = to.ptr<uint16_t>() + m * to.stride[0];
      from.data = from.ptr<uint16_t>() + m * from.stride[0];
      to.shape[0] = from.shape[0] = 1;
      CheckDone(Linear({to, from, weight.view(), std::nullopt}, nullptr));
    }
    CHECK(alone.Bytes() == together.Bytes());
  }
}

// Each kernel reads what the one in front of it writes; the weights it may read ahead.
TEST_CASE("a chain of CUDA products that read weights ahead repeats bit for bit" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(3);
  const int64_t width = Size(1024, 128);
  const Operands up({3, 2 * width, width}, DType::kBF16, rng);
  const Operands down({3, width, width}, DType::kBF16, rng);
  const OnDevice up_weight(up.weight), down_weight(down.weight);
  std::vector<unsigned char> first;
  for (const bool ahead : {false, true, true, true}) {
    const OnDevice x(up.x), hidden(Tensor(DType::kBF16, {3, 2 * width}));
    const OnDevice gated(Tensor(DType::kBF16, {3, width}));
    for (int i = 0; i < 4; ++i) {
      CheckDone(Linear({hidden.view(), x.view(), up_weight.view(), std::nullopt, ahead}, nullptr));
      CheckDone(SiluMul({gated.view(), hidden.view()}, nullptr));
      CheckDone(Linear({x.view(), gated.view(), down_weight.view(), std::nullopt, ahead}, nullptr));
    }
    if (first.empty()) first = x.Bytes();
    CHECK(x.Bytes() == first);
  }
}

TEST_CASE("a CUDA product refuses what a BLAS does as well") {
  Tensor out(DType::kBF16, {513, 64}), x(DType::kBF16, {513, 64}), weight(DType::kBF16, {64, 64});
  CHECK(cpu::Refused(Linear({out.view(), x.view(), weight.view(), std::nullopt}, nullptr),
                     "x has 513 rows, need at most 512 on CUDA"));
  Tensor out32(DType::kF32, {1, 8}), x32(DType::kF32, {1, 8}), weight32(DType::kF32, {8, 8});
  CHECK(cpu::Refused(Linear({out32.view(), x32.view(), weight32.view(), std::nullopt}, nullptr),
                     "x is float32"));
}

}  // namespace
}  // namespace octavo::cuda
