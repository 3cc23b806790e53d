// The CUDA product of few rows with the norm before it and the gate and sum behind it, beside the
// CPU op. Needs a CUDA device; without one every case is skipped.
#include <cuda_runtime.h>

#include <cmath>

#include "cpu/tensor.h"
#include "doctest/doctest.h"
#include "octavo/cuda_ops.h"

namespace octavo::cuda {
namespace {

using cpu::Tensor;

bool HasDevice() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}

class OnDevice {
 public:
  explicit OnDevice(const Tensor& t) : view_(t.view()), size_(t.bytes().size()) {
    REQUIRE(cudaMalloc(&memory_, size_) == cudaSuccess);
    REQUIRE(cudaMemcpy(memory_, view_.data, size_, cudaMemcpyHostToDevice) == cudaSuccess);
    view_.data = memory_;
  }
  ~OnDevice() { cudaFree(memory_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  const TensorView& view() const { return view_; }

  // Into a tensor of the same shape, gaps included.
  void CopyTo(const Tensor& t) const {
    REQUIRE(cudaMemcpy(t.view().data, memory_, size_, cudaMemcpyDeviceToHost) == cudaSuccess);
  }

 private:
  void* memory_ = nullptr;
  TensorView view_;
  size_t size_;
};

struct Case {
  DType dtype = DType::kBF16;
  int64_t m = 1, n = 8, k = 8;
  Gate gate = Gate::kNone;
  bool normed = false, biased = false, add = false, ahead = false;
  float eps = 1e-5f, offset = 0.0f;
};

struct Operands {
  explicit Operands(const Case& c)
      : c(c),
        x(c.dtype, {c.m, c.k}, 8),
        weight(c.dtype, {c.gate == Gate::kNone ? c.n : 2 * c.n, c.k}, 16),
        bias(c.dtype, {weight.dim(0)}),
        norm(c.dtype, {c.k}),
        out(c.dtype, {c.m, c.n}, 3) {}

  void Randomize(std::mt19937_64& rng) {
    for (Tensor* t : {&x, &bias, &norm}) t->Randomize(rng);
    weight.Randomize(rng, 1.0 / std::sqrt(static_cast<double>(c.k)));
    if (c.add) out.Randomize(rng);
  }

  // Numbers whose products and sums, and norms with an eps of 0, are exact in any order.
  void MakeExact(std::mt19937_64& rng) {
    const auto fill = [&](Tensor& t, auto value) {
      t.Each([&](int64_t at) { t.Put(at, static_cast<double>(value())); });
    };
    const auto small = [&] { return static_cast<int>(rng() % 5) - 2; };
    fill(x, [&] { return rng() % 2 == 0 ? 2 : -2; });
    for (Tensor* t : {&weight, &bias, &norm}) fill(*t, small);
    if (c.add) fill(out, small);
  }

  LinearArgs Args(const TensorView& to, const TensorView& from, const TensorView& w,
                  const TensorView& b, const TensorView& g) const {
    LinearArgs a{to, from, w, std::nullopt};
    if (c.biased) a.bias = b;
    if (c.normed) a.norm = g;
    a.weight_ready = c.ahead;
    a.eps = c.eps;
    a.norm_offset = c.offset;
    a.gate = c.gate;
    a.add = c.add;
    return a;
  }

  Tensor OnCpu() const {
    Tensor to = out;
    const Status done =
        cpu::Linear(Args(to.view(), x.view(), weight.view(), bias.view(), norm.view()));
    INFO(done.message());
    REQUIRE(done.ok());
    return to;
  }

  Tensor OnCuda() const {
    const OnDevice to(out), from(x), w(weight), b(bias), g(norm);
    const Status done = Linear(Args(to.view(), from.view(), w.view(), b.view(), g.view()), nullptr);
    INFO(done.message());
    REQUIRE(done.ok());
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    Tensor got = out;
    to.CopyTo(got);
    return got;
  }

  Case c;
  Tensor x, weight, bias, norm, out;
};

std::string Describe(const Case& c) {
  return "m " + std::to_string(c.m) + " n " + std::to_string(c.n) + " k " + std::to_string(c.k) +
         " gate " + std::to_string(static_cast<int>(c.gate)) + (c.normed ? " normed" : "") +
         (c.biased ? " biased" : "") + (c.add ? " add" : "") + (c.ahead ? " ahead" : "") +
         (c.dtype == DType::kF16 ? " f16" : " bf16");
}

void CheckGaps(const Case& c, const Tensor& got) {
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < 3; ++j) CHECK(std::isnan(got.Get(got.Offset({i, c.n + j}))));
  }
}

constexpr int64_t kManyM[] = {1, 3, 8, 9, 16};
constexpr Gate kGates[] = {Gate::kNone, Gate::kSilu, Gate::kGeluTanh};

Case RandomCase(std::mt19937_64& rng) {
  const int64_t many_n[] = {1, 7, 8, 17, 33, 130, 260}, many_k[] = {8, 64, 72, 136, 512, 1032};
  Case c;
  c.dtype = rng() % 2 == 0 ? DType::kBF16 : DType::kF16;
  c.m = kManyM[rng() % 5];
  c.n = many_n[rng() % 7];
  c.k = many_k[rng() % 6];
  c.gate = kGates[rng() % 3];
  c.normed = rng() % 2 == 0;
  c.biased = rng() % 2 == 0;
  c.add = rng() % 2 == 0;
  c.ahead = rng() % 2 == 0;
  c.offset = rng() % 2 == 0 ? 0.0f : 1.0f;
  return c;
}

TEST_CASE("CUDA fused product has the CPU op's bits where every sum is exact" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(31);
  for (int i = 0; i < 40; ++i) {
    Case c = RandomCase(rng);
    c.gate = Gate::kNone;
    c.eps = 0.0f;
    CAPTURE(Describe(c));
    Operands o(c);
    o.MakeExact(rng);
    const Tensor want = o.OnCpu(), got = o.OnCuda();
    for (int64_t r = 0; r < c.m; ++r) {
      for (int64_t j = 0; j < c.n; ++j) REQUIRE(got.At({r, j}) == want.At({r, j}));
    }
    CheckGaps(c, got);
  }
}

TEST_CASE("CUDA fused product is the CPU op's on random rows" * doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(32);
  for (int i = 0; i < 60; ++i) {
    const Case c = RandomCase(rng);
    CAPTURE(Describe(c));
    Operands o(c);
    o.Randomize(rng);
    const Tensor want = o.OnCpu(), got = o.OnCuda();
    double error = 0.0, size = 0.0;
    for (int64_t r = 0; r < c.m; ++r) {
      for (int64_t j = 0; j < c.n; ++j) {
        const double d = got.At({r, j}) - want.At({r, j});
        error += d * d;
        size += want.At({r, j}) * want.At({r, j});
      }
    }
    // Other sums fall on the other side of some roundings: of the norm, the product, the result.
    const double ulp = c.dtype == DType::kBF16 ? 0x1p-8 : 0x1p-11;
    REQUIRE(std::sqrt(error) <= 2.0 * ulp * std::sqrt(size));
    CheckGaps(c, got);
  }
}

TEST_CASE("a row of the CUDA fused product has the same bits for any number of rows" *
          doctest::skip(!HasDevice())) {
  std::mt19937_64 rng(33);
  for (const Gate gate : kGates) {
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{40, 72}, {300, 520}}) {
      Case c{DType::kBF16, 16, n, k, gate, true, true, true, true};
      CAPTURE(Describe(c));
      Operands o(c);
      o.Randomize(rng);
      const Tensor together = o.OnCuda();
      for (const int64_t first : {0, 5, 11}) {
        for (const int64_t rows : {1, 3}) {
          Case part = c;
          part.m = rows;
          Operands few(part);
          few.weight = o.weight;
          few.bias = o.bias;
          few.norm = o.norm;
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t j = 0; j < k; ++j) few.x.Set({r, j}, o.x.At({first + r, j}));
            for (int64_t j = 0; j < n; ++j) few.out.Set({r, j}, o.out.At({first + r, j}));
          }
          const Tensor alone = few.OnCuda();
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t j = 0; j < n; ++j) {
              REQUIRE(alone.At({r, j}) == together.At({first + r, j}));
            }
          }
        }
      }
    }
  }
}

// A layer's feed-forward half again and again: every kernel reads what the one in front wrote.
TEST_CASE("CUDA fused products in a chain read what the kernel in front has written" *
          doctest::skip(!HasDevice())) {
  constexpr int64_t kRows = 3, kHidden = 136, kInner = 200;
  std::mt19937_64 rng(34);
  const DType dtype = DType::kBF16;
  Tensor residual(dtype, {kRows, kHidden}), inner(dtype, {kRows, kInner}), norm(dtype, {kHidden});
  Tensor up(dtype, {2 * kInner, kHidden}), down(dtype, {kHidden, kInner});
  residual.Randomize(rng);
  norm.Randomize(rng);
  up.Randomize(rng, 0.1);
  down.Randomize(rng, 0.1);
  const OnDevice d_residual(residual), d_inner(inner), d_norm(norm), d_up(up), d_down(down);
  for (int layer = 0; layer < 4; ++layer) {
    const auto half = [&](const auto& r, const auto& i, const auto& g, const auto& u, const auto& w,
                          auto run) {
      LinearArgs first{i.view(), r.view(), u.view(), std::nullopt, true, g.view()};
      first.gate = Gate::kSilu;
      LinearArgs second{r.view(), i.view(), w.view(), std::nullopt, true};
      second.add = true;
      REQUIRE(run(first).ok());
      REQUIRE(run(second).ok());
    };
    half(d_residual, d_inner, d_norm, d_up, d_down,
         [](const LinearArgs& a) { return Linear(a, nullptr); });
    half(residual, inner, norm, up, down, [](const LinearArgs& a) { return cpu::Linear(a); });
  }
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  Tensor got = residual;
  d_residual.CopyTo(got);
  double error = 0.0, size = 0.0;
  residual.Each([&](int64_t at) {
    error += std::pow(got.Get(at) - residual.Get(at), 2);
    size += std::pow(residual.Get(at), 2);
  });
  CHECK(std::sqrt(error) <= 0.02 * std::sqrt(size));
}

TEST_CASE("CUDA fused product refuses a norm that it cannot read 16 bytes at a time" *
          doctest::skip(!HasDevice())) {
  Case c;
  c.k = 64;
  c.normed = true;
  Operands o(c);
  TensorView norm = o.norm.view();
  norm.data = static_cast<char*>(norm.data) + 2;
  const LinearArgs a = o.Args(o.out.view(), o.x.view(), o.weight.view(), o.bias.view(), norm);
  CHECK(cpu::Refused(Linear(a, nullptr), "norm begins"));
}

}  // namespace
}  // namespace octavo::cuda
